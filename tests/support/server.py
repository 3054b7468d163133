"""A really running `ollmlx serve` with a store, a port and a temporary directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.v1 import runner_pb2_grpc as pb_grpc

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = REPOSITORY / "python_runner" / "ollmlx" / "_bin" / "ollmlx"

# Libraries that MLX has compiled for servers of this process. Each has a cache of its own, which begins with them.
_compiled = tempfile.TemporaryDirectory(prefix="olxc")


class Server:
    """Use as a context manager. `http` is a client bound to the server; keyword arguments become its environment."""

    def __init__(self, **environment: str) -> None:
        # Short, because the runtime directory with its sockets is made in it.
        self._directory = tempfile.TemporaryDirectory(prefix="olx", ignore_cleanup_errors=True)
        self.root = Path(self._directory.name)
        # Of the model `demo`.
        self.format = "mlx"
        self.models = self.root / "models"
        self.log_path = self.root / "log"
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = {
            **os.environ,
            "OLLAMA_HOST": self.url,
            "OLLAMA_MODELS": str(self.models),
            "OLLMLX_CACHE": str(self.root / "cache"),
            "OLLMLX_PYTHON": sys.executable,
            "TMPDIR": str(self.root),
            # It would compete with what is tested for the processor.
            "OLLMLX_WARM_RUNNER": "0",
            **environment,
        }

    def __enter__(self) -> Server:
        runner = self.root / "cache" / "runner"
        runner.mkdir(mode=0o700, parents=True)
        shutil.copytree(_compiled.name, runner, dirs_exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.http.close()
        compiled = self.root / "cache" / "runner" / "mlx"
        if compiled.is_dir():
            shutil.copytree(compiled, Path(_compiled.name) / "mlx", dirs_exist_ok=True)
        self._directory.cleanup()

    def start(self, poll: float = 0.02) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve"], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.http = httpx.Client(base_url=self.url, timeout=120, trust_env=False)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/").status_code == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not come up:\n{self.log}")
            time.sleep(poll)

    def stop(self, seconds: float = 15) -> int:
        """Ask it to end and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def create(self, name: str, directory: Path, *lines: str) -> None:
        """`ollmlx create` from a model directory and further Modelfile lines."""
        modelfile = self.root / f"Modelfile-{name.replace('/', '-')}"
        modelfile.write_text("\n".join([f"FROM {directory}", *lines]))
        done = self.cli("create", name, "-f", str(modelfile))
        assert done.returncode == 0, done.stderr

    def cli(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BINARY, *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """One JSON answer; fails on an error status."""
        response = self.http.post(path, json={"stream": False, **body})
        assert response.status_code == 200, response.text
        return response.json()

    @contextlib.contextmanager
    def stream(self, path: str, **body: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """A streamed answer as an iterator of its objects; leaving the block closes the connection."""
        with self.http.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            yield (json.loads(line) for line in response.iter_lines())

    def runner_processes(self) -> list[psutil.Process]:
        """The runners of this server, also after the server itself has died."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            arguments = process.info["cmdline"] or []
            is_runner = any(a == "ollmlx.runner" or a.endswith("fake_runner.py") for a in arguments)
            if is_runner and any(str(self.root) in a for a in arguments):
                found.append(process)
        return found

    def runner_status(self) -> pb.StatusResponse:
        """Status of the runner that was started last, asked over its own socket."""
        newest = max(self.root.glob("ollmlx-*/r*.sock"), key=lambda path: int(path.stem.removeprefix("r")))
        with grpc.insecure_channel(f"unix:{newest}") as channel:
            return pb_grpc.RunnerStub(channel).Status(pb.StatusRequest(), timeout=5)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
