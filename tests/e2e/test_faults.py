"""That nothing is left of real runners; what clients see of faults is the table of tests/reliability."""

from __future__ import annotations

import contextlib
import json
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


def test_an_interrupted_server_leaves_nothing(busy: Server) -> None:
    runners = busy.runner_processes()
    assert runners
    busy.process.send_signal(signal.SIGINT)
    assert busy.process.wait(15) == 0
    assert not [r for r in runners if r.is_running()]
    assert not list(busy.root.glob("ollmlx-*")), "the runtime directory is removed"


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
