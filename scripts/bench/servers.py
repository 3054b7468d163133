"""The servers that are measured, each as a context manager with the body of a request for it."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.server import Server, free_port

from .client import Post


class Ollmlx(Server):
    """`ollmlx serve` with one model, called "bench"."""

    def __init__(self, model: Path, *lines: str, **environment: str) -> None:
        """`lines` are of the model's Modelfile."""
        super().__init__(OLLAMA_CONTEXT_LENGTH="8192", **environment)
        self._model, self._lines = model, lines

    def __enter__(self) -> Ollmlx:
        super().__enter__()
        self.create("bench", self._model, *self._lines)
        return self

    def generate(self, prompt: str, tokens: int, after: float = 0.0, **fields: Any) -> Post:
        """A raw generate of the native API."""
        body = {
            "model": "bench", "prompt": prompt, "raw": True,
            "options": {"temperature": 0, "num_predict": tokens}, **fields,
        }  # fmt: skip
        return Post(f"{self.url}/api/generate", body, after)

    def completion(self, prompt: str, tokens: int) -> Post:
        return completion(self.url, "bench", prompt, tokens)


class Peer:
    """Another server of OpenAI's completions, started from the virtual environment in `venv`."""

    def __init__(self, venv: Path, arguments: list[str], model: Path, log: Path) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._model, self._log = model, log
        self._command = [str(venv / "bin" / arguments[0]), *arguments[1:], "--port", str(self._port)]

    def __enter__(self) -> Peer:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                    if response.status == 200:
                        return self
            except OSError:
                time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"{self._command[0]} did not come up:\n{self._log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def completion(self, prompt: str, tokens: int) -> Post:
        return completion(self.url, str(self._model), prompt, tokens)


def mlx_lm_server(venv: Path, model: Path, log: Path) -> Peer:
    return Peer(venv, ["python", "-m", "mlx_lm.server", "--model", str(model)], model, log)


def vllm_mlx(venv: Path, model: Path, log: Path) -> Peer:
    return Peer(venv, ["vllm-mlx", "serve", str(model), "--continuous-batching"], model, log)


def completion(url: str, model: str, prompt: str, tokens: int) -> Post:
    return Post(
        f"{url}/v1/completions",
        {
            "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        },
    )  # fmt: skip
