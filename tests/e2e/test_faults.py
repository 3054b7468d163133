"""What clients see when a process dies, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.server import Server
from tests.support.tiny_models import make_model

LONG = {
    "model": "endless",
    "prompt": "go on",
    "raw": True,
    "options": {"num_predict": 1900, "temperature": 0},
}
DIED = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"


@pytest.fixture
def busy(own_server: Server, tmp_path: Path) -> Server:
    own_server.create("endless", make_model(tmp_path / "m", "llama", endless=True))
    own_server.post("/api/generate", model="endless")
    return own_server


def test_a_killed_host_leaves_no_runner(busy: Server) -> None:
    [runner] = busy.runner_processes()
    with contextlib.suppress(httpx.TransportError), busy.stream("/api/generate", **LONG) as stream:
        next(stream)
        busy.process.kill()
        killed = time.monotonic()
        for _ in stream:
            pass
    busy.process.wait()
    # An orphan that ended is a zombie until whoever is process 1 here takes notice.
    while runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - killed < 1
        time.sleep(0.01)


def test_a_server_that_starts_removes_what_a_killed_one_left(busy: Server) -> None:
    [left] = busy.root.glob("ollmlx-*")
    busy.process.kill()
    busy.process.wait()
    busy.start()
    assert not left.exists()
    assert busy.post("/api/generate", **{**LONG, "options": {"num_predict": 3}})["eval_count"] == 3


def test_a_killed_runner_fails_its_requests_and_the_next_gets_a_new_one(busy: Server) -> None:
    with busy.stream("/api/generate", **LONG) as stream:
        next(stream)
        [runner] = busy.runner_processes()
        os.kill(runner.pid, signal.SIGKILL)
        killed = time.monotonic()
        *_, last = stream
    assert time.monotonic() - killed < 1
    assert last["error"].startswith(DIED)
    answer = busy.post("/api/generate", **{**LONG, "options": {"num_predict": 3}})
    assert answer["eval_count"] == 3
    [replacement] = busy.runner_processes()
    assert replacement.pid != runner.pid
    assert not psutil.pid_exists(runner.pid), "no zombie"


def test_an_unstreamed_request_gets_an_error_status(busy: Server) -> None:
    import threading

    [runner] = busy.runner_processes()
    threading.Timer(0.3, lambda: os.kill(runner.pid, signal.SIGKILL)).start()
    response = busy.http.post("/api/generate", json={**LONG, "stream": False})
    assert response.status_code == 500
    assert response.json()["error"].startswith(DIED)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_leaves_nothing(busy: Server, sign: signal.Signals) -> None:
    runners = busy.runner_processes()
    assert runners
    busy.process.send_signal(sign)
    assert busy.process.wait(15) == 0
    assert not [r for r in runners if r.is_running()]
    assert not list(busy.root.glob("ollmlx-*")), "the runtime directory is removed"


def test_a_second_server_on_the_store_or_the_port_says_why(own_server: Server) -> None:
    same_port = own_server.cli("serve")
    assert same_port.returncode == 1
    assert "in use" in same_port.stderr
    with pytest.raises(RuntimeError, match=str(own_server.process.pid)):
        Server(OLLAMA_MODELS=str(own_server.models)).start()


def test_a_model_that_cannot_be_loaded_is_one_clear_error(own_server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    own_server.create("odd", model)
    response = own_server.http.post("/api/generate", json={"model": "odd", "prompt": "Hi"})
    assert response.status_code in (400, 500)
    assert "no_such_model" in response.json()["error"]
    assert str(own_server.root) not in response.json()["error"], "no paths to clients"
    assert own_server.post("/api/generate", model="demo", prompt="Hi")["done"]
