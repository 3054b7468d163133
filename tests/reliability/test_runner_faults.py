"""Runners that die, hang and starve: what the clients see, and how soon there is service again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import resource
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import psutil

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.reliability.faults import FAULTS, fault
from tests.support.server import Server
from tests.support.tiny_models import make_model

WORDS = " ".join(f"word{i}" for i in range(400))
DIED = "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error"
SLOW_LOAD, SLOW_PREFILL, SLOW_STEPS = "--load-steps 300", "--prefill-steps 30000", "--interval 0.01"


def generate(prompt: str = WORDS, **more: object) -> dict:
    return {"model": "demo", "prompt": prompt, "raw": True, **more}


def the_runner(server: Server) -> psutil.Process:
    """The one runner of a server, once there is one."""
    deadline = time.monotonic() + 30
    while not (found := server.runner_processes()):
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)
    [runner] = found
    return runner


def in_state(server: Server, state: str) -> None:
    """Wait until the model is "loading", "busy" or "idle"."""
    deadline = time.monotonic() + 30
    while [m["state"] for m in server.http.get("/api/ps").json()["models"]] != [state]:
        assert time.monotonic() < deadline, server.http.get("/api/ps").text
        time.sleep(0.02)


def until_it_loads(server: Server) -> None:
    """A runner is on its way from when its start is decided; wait until it has begun to read its model."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(ValueError, grpc.RpcError):
            if server.runner_status().state == pb.StatusResponse.STATE_LOADING:
                return
        assert time.monotonic() < deadline, server.log
        time.sleep(0.02)


def served_within(server: Server, key: str, **request: object) -> None:
    """The next request is answered, in the time that the table tells."""
    began = time.monotonic()
    assert server.post("/api/generate", **generate("one two", **request))["done"]
    assert time.monotonic() - began < FAULTS[key].seconds


def ask(server: Server) -> concurrent.futures.Future[httpx.Response]:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    return pool.submit(server.http.post, "/api/generate", json=generate(stream=False))


@fault("runner killed while loading")
def test_killed_while_loading(fake_server: Callable[..., Server]) -> None:
    server = fake_server(SLOW_LOAD)
    waiting = ask(server)
    until_it_loads(server)
    the_runner(server).kill()
    response = waiting.result(10)
    assert response.status_code == 500
    assert response.json()["error"].startswith(DIED)
    assert "SIGKILL" in response.json()["error"]
    ask(server)
    until_it_loads(server)
    server.process.kill()


@fault("runner killed while prefilling")
def test_killed_while_prefilling(fake_server: Callable[..., Server]) -> None:
    server = fake_server(SLOW_PREFILL)
    waiting = ask(server)
    in_state(server, "busy")
    the_runner(server).kill()
    response = waiting.result(10)
    assert response.status_code == 500
    assert response.json()["error"].startswith(DIED)
    assert server.http.post("/api/generate", json={"model": "demo"}).status_code == 200


@fault("runner killed while decoding", "runner killed while idle")
def test_killed_while_decoding_and_idle(fake_server: Callable[..., Server]) -> None:
    server = fake_server(SLOW_STEPS)
    with server.stream("/api/generate", **generate()) as stream:
        assert next(stream)["response"]
        runner = the_runner(server)
        runner.kill()
        *_, last = stream
    assert last["error"].startswith(DIED)
    served_within(server, "runner killed while decoding")
    assert not psutil.pid_exists(runner.pid), "no zombie"
    idle = the_runner(server)
    idle.kill()
    while psutil.pid_exists(idle.pid):
        time.sleep(0.001)
    served_within(server, "runner killed while idle")


@fault("runner crashes at every start")
def test_crashes_at_every_start(fake_server: Callable[..., Server]) -> None:
    server = fake_server("--crash start")
    for _ in range(2):
        response = server.http.post("/api/generate", json=generate())
        assert response.status_code == 500
        assert "exit code 70" in response.json()["error"]
        assert "crashing at start" in response.json()["error"], "the end of its log"
    response = server.http.post("/api/generate", json=generate())
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    [failing] = server.http.get("/api/ps").json()["failing"]
    assert failing["name"] == "demo:latest"
    assert failing["failures"] == 2


@fault("runner stands still")
def test_stands_still(fake_server: Callable[..., Server]) -> None:
    server = fake_server(SLOW_STEPS, OLLMLX_STEP_TIMEOUT="2")
    with server.stream("/api/generate", **generate()) as stream:
        next(stream)
        the_runner(server).suspend()
        began = time.monotonic()
        *_, last = stream
    assert "it did not answer for 2s" in last["error"]
    assert time.monotonic() - began < FAULTS["runner stands still"].seconds
    served_within(server, "runner stands still")


@fault("step does not end")
def test_a_step_that_does_not_end(fake_server: Callable[..., Server]) -> None:
    server = fake_server("--hang step", OLLMLX_STEP_TIMEOUT="1")
    with server.stream("/api/generate", **generate()) as stream:
        assert next(stream)["response"]
        began = time.monotonic()
        *_, last = stream
    assert last["error"].startswith(DIED)
    assert time.monotonic() - began < FAULTS["step does not end"].seconds
    served_within(server, "step does not end")


@fault("runner out of memory")
def test_a_real_runner_without_memory(own_server: Server, tmp_path: Path) -> None:
    """The steps of a runner whose address space may not grow fail."""
    # A piece of its prompt needs tens of megabytes at once, which nothing that was freed before can give.
    sizes = {"max_position_embeddings": 4096, "intermediate_size": 8192}
    own_server.create("long", make_model(tmp_path / "m", "llama", **sizes))
    request = {"model": "long", "prompt": "a" * 3000, "raw": True, "options": {"num_predict": 4}}
    own_server.post("/api/generate", **{**request, "prompt": "a"})
    [runner] = own_server.runner_processes()
    used = runner.memory_info().vms
    runner.rlimit(resource.RLIMIT_AS, (used + (1 << 20), resource.RLIM_INFINITY))
    response = own_server.http.post("/api/generate", json={**request, "stream": False})
    assert response.status_code == 500, response.text
    assert response.json()["error"]
    if runner.is_running() and runner.status() != psutil.STATUS_ZOMBIE:
        runner.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert own_server.post("/api/generate", **request)["eval_count"] == 4


@fault("model does not fit")
def test_a_model_that_does_not_fit(fake_server: Callable[..., Server], tmp_path: Path) -> None:
    server = fake_server(OLLMLX_MEMORY="200MB")
    server.create(
        "big",
        make_model(tmp_path / "m", "llama", hidden_size=1024, intermediate_size=8192, num_hidden_layers=6),
    )
    assert server.post("/api/generate", **generate("one"))["done"]
    response = server.http.post("/api/generate", json=generate("one") | {"model": "big"})
    assert response.status_code == 500
    error = response.json()["error"]
    assert error.startswith("model requires ")
    assert " but only " in error and " are available (after " in error
    assert [m["name"] for m in server.http.get("/api/ps").json()["models"]] == ["demo:latest"]


def test_documents_are_of_now() -> None:
    import tests.reliability.test_host_faults  # noqa: F401 -- both files together inject all rows
    from tests.reliability.faults import DOCUMENT, document, injected

    assert injected == FAULTS.keys()
    assert DOCUMENT.read_text() == document(DOCUMENT.read_text()), "run python -m tests.reliability.faults"
