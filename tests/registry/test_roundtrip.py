"""A running server pulls from and pushes to a real registry: that of the distribution project."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.tiny_ggufs import make_gguf
from tests.support.tiny_models import make_model
from tests.support.tiny_projectors import make_projector

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def registry_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = os.environ.get("OLLMLX_GO") or shutil.which("go")
    assert go, "Go is needed to build the registry that the tests use"
    binary = tmp_path_factory.mktemp("registry") / "registry"
    subprocess.run(
        [go, "build", "-o", binary, "./server"], cwd=HERE, check=True, env={**os.environ, "CGO_ENABLED": "0"}
    )
    return binary


@pytest.fixture
def registry(registry_binary: Path, tmp_path: Path) -> Iterator[str]:
    """An empty registry; gives its host and port."""
    process = subprocess.Popen(
        [registry_binary, "-dir", tmp_path / "registry"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)


def answer(server: Server, model: str) -> str:
    options = {"temperature": 0, "num_predict": 8}
    return server.post("/api/generate", model=model, prompt="Hello", options=options)["response"]


def digest(server: Server, model: str) -> str:
    return next(
        m["digest"] for m in server.http.get("/api/tags").json()["models"] if m["name"] == f"{model}:latest"
    )


def make_mlx(directory: Path) -> Path:
    return make_model(directory, "llama")


def make_ggufs(directory: Path) -> Path:
    """A model with its projector: two files and two layers."""
    make_gguf(directory / "tiny.gguf", "llama", endless=True)
    make_projector(directory / "mmproj.gguf")
    return directory


@pytest.mark.parametrize("make", [make_mlx, make_ggufs])
def test_round_trip(registry: str, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    model = f"{registry}/tests/tiny"
    with Server(HOME=str(tmp_path)) as server:
        server.create(model, make(tmp_path / "tiny"), "SYSTEM A tiny one.")
        said, made = answer(server, model), digest(server, model)

        pushed = server.cli("push", model, "--insecure")
        assert pushed.returncode == 0, pushed.stderr
        lines = pushed.stderr.splitlines()
        assert lines[0] == "retrieving manifest" and lines[-2:] == ["pushing manifest", "success"], lines

        assert server.cli("rm", model).returncode == 0
        assert all(m["name"] != f"{model}:latest" for m in server.http.get("/api/tags").json()["models"])
        pulled = server.cli("pull", model, "--insecure")
        assert pulled.returncode == 0, pulled.stderr
        assert digest(server, model) == made
        assert answer(server, model) == said

        # A missing model is pulled by run.
        assert server.cli("rm", model).returncode == 0
        ran = server.cli("run", model, "--insecure", "Hello")
        assert ran.returncode == 0, ran.stderr
        assert "success" in ran.stderr and digest(server, model) == made

    with Server(HOME=str(tmp_path)) as other:
        with other.stream("/api/pull", model=model, insecure=True) as events:
            statuses = [e["status"] for e in events]
        assert statuses[0] == "pulling manifest"
        assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
        assert digest(other, model) == made
        assert answer(other, model) == said
        shown = other.post("/api/show", model=model)
        assert ("vision" in shown["capabilities"]) == (make is make_ggufs)


def test_errors(registry: str, tmp_path: Path) -> None:
    missing = {"model": f"{registry}/tests/missing", "insecure": True}
    with Server(HOME=str(tmp_path)) as server:
        with server.stream("/api/pull", **missing) as events:
            assert list(events) == [
                {"status": "pulling manifest"},
                {"error": "pull model manifest: file does not exist"},
            ]
        response = server.http.post("/api/pull", json={**missing, "stream": False})
        assert response.status_code == 500
        assert response.json() == {"error": "pull model manifest: file does not exist"}

        failed = server.cli("pull", missing["model"], "--insecure")
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1] == "Error: pull model manifest: file does not exist"

        # What comes with ollmlx needs no registry.
        assert server.post("/api/pull", model="demo") == {"status": "success"}


def test_interrupted_by_kill(registry: str, tmp_path: Path) -> None:
    """A server that is killed during a pull shows no half model, and the next pull ends right."""
    model = f"{registry}/tests/larger"
    with Server(HOME=str(tmp_path)) as server:
        server.create(
            model, make_model(tmp_path / "larger", "llama", hidden_size=512, intermediate_size=2048)
        )
        made = digest(server, model)
        assert server.cli("push", model, "--insecure").returncode == 0
    with Server(HOME=str(tmp_path)) as other:
        with other.stream("/api/pull", model=model, insecure=True) as events:
            next(e for e in events if "digest" in e)
            other.process.send_signal(signal.SIGKILL)
            other.process.wait()
        other.http.close()
        other.start()
        names = [m["name"] for m in other.http.get("/api/tags").json()["models"]]
        assert f"{model}:latest" not in names or digest(other, model) == made
        other.post("/api/pull", model=model, insecure=True)
        assert digest(other, model) == made
        assert answer(other, model)
