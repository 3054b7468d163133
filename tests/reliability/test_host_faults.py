"""A host that is stopped and killed, a machine that runs out of things, and clients that behave badly."""

from __future__ import annotations

import concurrent.futures
import contextlib
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.reliability.faults import FAULTS, fault
from tests.reliability.test_runner_faults import (
    SLOW_LOAD,
    SLOW_PREFILL,
    SLOW_STEPS,
    WORDS,
    ask,
    generate,
    in_state,
    served_within,
    the_runner,
)
from tests.support.server import Server
from tests.support.tiny_models import make_model

STATES = {
    "loading": (SLOW_LOAD, "loading"),
    "prefilling": (SLOW_PREFILL, "busy"),
    "decoding": (SLOW_STEPS, "busy"),
    "idle": ("", "idle"),
}


def put_into(server: Server, state: str) -> concurrent.futures.Future[httpx.Response] | None:
    """Bring a server into a state; returns the request that is under way."""
    if state == "idle":
        server.post("/api/generate", **generate("one"))
        return None
    request = ask(server)
    in_state(server, STATES[state][1])
    return request


def wait_until_gone(processes: list[psutil.Process], seconds: float) -> None:
    """An orphan that has ended is a zombie until whoever is process 1 here takes notice."""
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, f"{process} lives"
                time.sleep(0.01)


@pytest.mark.parametrize("state", STATES)
@fault(*[f"host killed while {state}" for state in STATES])
def test_killed_host(fake_server: Callable[..., Server], state: str) -> None:
    server = fake_server(STATES[state][0])
    request = put_into(server, state)
    runner = the_runner(server)
    [left] = server.root.glob("ollmlx-*")
    server.process.kill()
    server.process.wait()
    wait_until_gone([runner], 2)
    if request is not None:
        with pytest.raises(httpx.TransportError):
            request.result(10)
    server.environment["FAKE_OPTIONS"] = ""
    server.start()
    assert not left.exists(), "a restart leaves nothing stale"
    served_within(server, f"host killed while {state}")


@pytest.mark.parametrize("state", STATES)
@fault(*[f"host terminated while {state}" for state in STATES])
def test_terminated_host(fake_server: Callable[..., Server], state: str) -> None:
    server = fake_server(STATES[state][0])
    request = put_into(server, state)
    runner = the_runner(server)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    if state in ("loading", "prefilling"):
        # They would take longer than the drain; the second signal does not wait for it.
        with contextlib.suppress(httpx.TransportError):
            while True:
                server.http.get("/", timeout=1).raise_for_status()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(5)
        with pytest.raises(httpx.TransportError):
            request.result(10)
    else:
        if request is not None:
            assert request.result(15).json()["response"] == WORDS.replace(" ", "")
        assert server.process.wait(15) == 0
        assert not list(server.root.glob("ollmlx-*")), "the runtime directory is removed"
    assert time.monotonic() - began < FAULTS[f"host terminated while {state}"].seconds
    wait_until_gone([runner], 2)


@fault("disk full")
def test_disk_full(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", models], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with Server(OLLAMA_MODELS=str(models)) as server:
            big = make_model(
                tmp_path / "big", "llama", hidden_size=256, intermediate_size=2048, num_hidden_layers=2
            )
            modelfile = server.root / "Modelfile"
            modelfile.write_text(f"FROM {big}")
            done = server.cli("create", "big", "-f", str(modelfile))
            assert done.returncode == 1
            assert "no space left" in done.stderr.lower()
            assert [m["name"] for m in server.http.get("/api/tags").json()["models"]] == ["demo:latest"]
            server.create("small", make_model(tmp_path / "small", "llama"))
            names = [m["name"] for m in server.http.get("/api/tags").json()["models"]]
            assert names == ["small:latest", "demo:latest"]
    finally:
        subprocess.run(["umount", models], check=False)


@fault("runtime directory removed", "machine sleeps", "keep_alive 0 while others stream")
def test_nothing_to_notice(fake_server: Callable[..., Server], tmp_path: Path) -> None:
    server = fake_server(SLOW_STEPS, OLLMLX_STEP_TIMEOUT="2")
    server.create("other", make_model(tmp_path / "m", "llama"))
    with server.stream("/api/generate", **generate()) as stream:
        assert next(stream)["response"]
        # The directory of the sockets goes away.
        [directory] = server.root.glob("ollmlx-*")
        shutil.rmtree(directory)
        assert next(stream)["response"]
        served_within(server, "runtime directory removed", model="other")
        # The machine sleeps for longer than a runner may be silent.
        runners = server.runner_processes()
        for process in [psutil.Process(server.process.pid), *runners]:
            process.suspend()
        time.sleep(5)
        for process in [*runners, psutil.Process(server.process.pid)]:
            process.resume()
        assert next(stream)["response"]
        # Another request wants the model unloaded.
        served_within(server, "keep_alive 0 while others stream", keep_alive=0)
        *_, last = stream
    assert last["done"], last
    deadline = time.monotonic() + 10
    while "demo:latest" in [m["name"] for m in server.http.get("/api/ps").json()["models"]]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@fault("clients disconnect")
def test_clients_disconnect(fake_server: Callable[..., Server]) -> None:
    server = fake_server("--interval 0.005")
    host = psutil.Process(server.process.pid)
    server.post("/api/generate", **generate("one"))
    files = host.num_fds()
    rng = random.Random(1)
    patience = [rng.uniform(0, 0.5) for _ in range(200)]

    def leave(seconds: float) -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.Client(base_url=server.url, trust_env=False, timeout=seconds + 0.01) as client,
            client.stream("POST", "/api/generate", json=generate()) as response,
        ):
            deadline = time.monotonic() + seconds
            for _ in response.iter_lines():
                if time.monotonic() > deadline:
                    return

    with server.stream("/api/generate", **generate()) as stays:
        next(stays)
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            list(pool.map(leave, patience))
        *_, last = stays
    assert last["done"], last
    deadline = time.monotonic() + FAULTS["clients disconnect"].seconds
    while server.runner_status().running or host.num_fds() > files + 2:
        assert time.monotonic() < deadline, (server.runner_status().running, host.num_fds(), files)
        time.sleep(0.02)
    assert server.http.get("/api/ps").json()["models"][0]["requests"] == 0


@fault("queue overflow")
def test_queue_overflow(fake_server: Callable[..., Server]) -> None:
    server = fake_server("--load-steps 20", OLLAMA_MAX_QUEUE="2")
    barrier = threading.Barrier(5)

    def request() -> httpx.Response:
        barrier.wait()
        return server.http.post("/api/generate", json=generate("one", stream=False))

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        responses = [f.result() for f in [pool.submit(request) for _ in range(5)]]
    assert sorted(r.status_code for r in responses) == [200, 200, 503, 503, 503]
    for refused in (r for r in responses if r.status_code == 503):
        assert refused.json()["error"] == "server busy, please try again.  maximum pending requests exceeded"
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.elapsed.total_seconds() < 2
    served_within(server, "queue overflow")


@fault("two servers on one port", "two servers on one store")
def test_two_servers(fake_server: Callable[..., Server]) -> None:
    server = fake_server()
    same_port = server.cli("serve")
    assert same_port.returncode == 1
    assert "in use" in same_port.stderr and "OLLAMA_HOST" in same_port.stderr
    with pytest.raises(RuntimeError, match=str(server.process.pid)):
        Server(OLLAMA_MODELS=str(server.models)).start()
    assert server.post("/api/generate", **generate("one"))["done"]
