"""Ollama's JavaScript client against a running server: `ollama_client.mjs` asks, this file judges."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server

PACKAGE = "ollama@0.6.4"
SCRIPT = Path(__file__).with_name("ollama_client.mjs")
ANSWER = "local model server for MLX"
# A PNG of one pixel.
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")),
    reason="node and npm are not on this machine; they are needed to run Ollama's JavaScript client",
)


@pytest.fixture(scope="session")
def script() -> Path:
    """The script beside the client, which is installed once and lives as long as the Python environment does."""
    home = Path(sys.prefix) / "test-clients" / PACKAGE
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "installed").exists():
            install = [
                "npm",
                "install",
                "--prefix",
                str(home),
                "--no-audit",
                "--no-fund",
                "--no-package-lock",
            ]
            done = subprocess.run([*install, PACKAGE], capture_output=True, text=True, timeout=180)
            if done.returncode != 0:
                pytest.skip(f"npm could not install {PACKAGE}: {done.stderr.strip().splitlines()[:3]}")
            (home / "installed").touch()
        return Path(shutil.copy(SCRIPT, home))


@pytest.fixture
def run(script: Path, server: Server) -> Callable[..., Any]:
    def run(scenario: str, argument: str = "") -> Any:
        done = subprocess.run(
            ["node", script, server.url, scenario, argument], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_generate(run: Callable[..., Any]) -> None:
    seen = run("generate")
    whole, parts = seen["whole"], seen["parts"]
    assert ANSWER in whole["response"]
    assert (whole["done"], whole["done_reason"]) == (True, "stop")
    assert "".join(p["response"] for p in parts) == whole["response"]
    assert len(parts) > 5
    assert parts[-1]["eval_count"] == whole["eval_count"]
    assert parts[-1]["prompt_eval_cached_count"] > 0


def test_chat(run: Callable[..., Any]) -> None:
    seen = run("chat")
    whole, parts = seen["whole"], seen["parts"]
    assert ANSWER in whole["message"]["content"]
    assert whole["message"]["role"] == "assistant"
    assert "".join(p["message"]["content"] for p in parts) == whole["message"]["content"]
    assert len(parts) > 5


def test_thinking(run: Callable[..., Any]) -> None:
    seen = run("thinking")
    whole = seen["whole"]["message"]
    assert whole["thinking"]
    assert "".join(p["message"].get("thinking", "") for p in seen["parts"]) == whole["thinking"]
    assert "".join(p["message"]["content"] for p in seen["parts"]) == whole["content"]


def test_tools(run: Callable[..., Any]) -> None:
    seen = run("tools")
    [call] = seen["called"]["message"]["tool_calls"]
    assert call["function"]["arguments"] == {"city": "Paris"}
    [streamed] = [c for p in seen["parts"] for c in p["message"].get("tool_calls", [])]
    assert streamed["function"] == call["function"]
    assert "24" in seen["final"]["message"]["content"]


def test_structured_output(run: Callable[..., Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["ollmlx", "other"]}, "good": {"type": "boolean"}},
        "required": ["name", "good"],
        "additionalProperties": False,
    }
    seen = run("structured", json.dumps(schema))
    answer = json.loads(seen["schema"]["message"]["content"])
    assert answer["name"] in ("ollmlx", "other")
    assert isinstance(answer["good"], bool)
    assert isinstance(json.loads(seen["json"]["message"]["content"]), dict)


def test_logprobs(run: Callable[..., Any]) -> None:
    answer = run("logprobs")
    assert "".join(t["token"] for t in answer["logprobs"]) == answer["response"]
    assert [len(t["top_logprobs"]) for t in answer["logprobs"]] == [2] * 4


def test_embeddings(run: Callable[..., Any]) -> None:
    seen = run("embeddings")
    assert [len(v) for v in seen["many"]["embeddings"]] == [8, 8]
    assert math.hypot(*seen["many"]["embeddings"][0]) == pytest.approx(1, abs=1e-3)
    assert len(seen["old"]["embedding"]) > 8


def test_models_are_made_shown_copied_listed_and_deleted(run: Callable[..., Any]) -> None:
    seen = run("manage")
    assert seen["progress"][-1]["status"] == "success"
    assert seen["shown"]["system"] == "Answer in JSON."
    assert seen["loaded"]["done_reason"] == "load"
    assert "copied-js:latest" in [m["name"] for m in seen["running"]["models"]]
    assert seen["unloaded"]["done_reason"] == "unload"
    assert {"from-js:latest", "copied-js:latest"} <= set(seen["names"])
    assert [d["status"] for d in seen["deleted"]] == ["success", "success"]
    assert seen["version"]["version"]


def test_pull_of_a_model_that_is_here(run: Callable[..., Any]) -> None:
    seen = run("pull")
    assert seen["whole"]["status"] == "success"
    assert [seen["parts"][0]["status"], seen["parts"][-1]["status"]] == ["pulling manifest", "success"]


def test_errors(run: Callable[..., Any]) -> None:
    seen = run("errors", IMAGE)
    missing = {"status": 404, "text": "model 'no-such-model' not found"}
    assert seen["missing"] == missing
    assert seen["missingStreamed"] == missing
    assert seen["image"]["status"] == 400
    assert "does not support vision" in seen["image"]["text"]
    assert seen["push"] is not None
    assert seen["option"] == {"status": 500, "text": 'option "top_k" must be of type integer'}


def test_abort(run: Callable[..., Any]) -> None:
    seen = run("abort")
    # What had come already is read to its end.
    assert seen["parts"] >= 3
    assert seen["error"] == "AbortError"
    assert seen["next"]["done_reason"] == "stop"
