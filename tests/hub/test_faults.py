"""What goes wrong with a hub ends in success after a repetition, or in one sentence and a store as it was."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.conftest import environment
from tests.hub.test_pull import WEIGHTS, answer, names, pull
from tests.support.hub_server import HubServer, read, sha256
from tests.support.server import Server
from tests.support.tiny_models import make_model


def size(model: Path) -> int:
    return (model / "model.safetensors").stat().st_size


def no_traces(server: Server, name: str) -> None:
    assert f"{name}:latest" not in names(server)
    assert server.http.post("/api/show", json={"model": name}).status_code == 404


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ({"drop": 100_000}, WEIGHTS),
        ({"drop": 100_000, "times": 3}, WEIGHTS),
        ({"drop": 50}, r"/config\.json$"),
        ({"drop": 0}, r"^/api/models/"),
        ({"status": 500, "times": 2}, WEIGHTS),
        ({"status": 503}, r"/resolve/"),
        ({"status": 502, "times": 2}, r"^/api/models/"),
        ({"status": 429}, WEIGHTS),
        ({"slow": 0.002}, WEIGHTS),
        ({"corrupt": True}, r"/tokenizer\.json$"),
    ],
    ids=str,
)
def test_passing_faults(hub: HubServer, server: Server, tmp_path: Path, fault: dict, pattern: str) -> None:
    name = "mlx-community/Fault-" + re.sub(r"[^A-Za-z0-9]+", "-", f"{fault}{pattern}").strip("-")
    # A seed for each, because content that is here already is not fetched.
    model = make_model(tmp_path / "m", "llama", seed=hash(name) % 1_000_000)
    hub.add(name, model)
    hub.fail(pattern, **fault)
    assert pull(server, name)[-1] == {"status": "success"}
    assert hub.faults[0].times == 0, "the fault was never met"
    ranges = [r.range for r in hub.requests(WEIGHTS) if r.status == 206]
    if "drop" in fault and pattern == WEIGHTS:
        # Each time only what was missing is asked for.
        begins = [int(re.match(r"bytes=(\d+)-", r)[1]) for r in ranges]
        assert begins[0] == 0 and begins == sorted(set(begins)) and len(begins) == fault.get("times", 1) + 1
    elif pattern == WEIGHTS:
        assert hub.body_bytes() == size(model)
    assert server.post("/api/show", model=name)["model_info"]["general.parameter_count"] > 0


def test_an_interrupted_pull_is_taken_up_where_it_ended(
    hub: HubServer, server: Server, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "m", "llama", seed=21)
    hub.add("mlx-community/Interrupted", model)
    hold = threading.Event()
    hub.fail(WEIGHTS, hold=hold)
    with server.stream("/api/pull", model="mlx-community/Interrupted") as events:
        come = next(
            e["completed"] for e in events if e.get("completed", 0) > 100_000 and "safetensors" in e["status"]
        )
    no_traces(server, "mlx-community/Interrupted")
    # Before that the rest could still come.
    _until(lambda: not _open_transfers(server))
    hold.set()
    hub.reset()
    assert pull(server, "mlx-community/Interrupted")[-1] == {"status": "success"}
    (weights,) = hub.requests(WEIGHTS)
    assert int(weights.range.removeprefix("bytes=").split("-")[0]) >= come
    assert hub.body_bytes(".") == weights.sent <= size(model) - come


def _open_transfers(server: Server) -> list[Path]:
    """Parts whose state has not been noted."""
    parts = (server.models / ".ollmlx" / "tmp").glob(".ollmlx-part-*")
    return [p for p in parts if p.suffix != ".json" and not p.with_name(p.name + ".json").exists()]


def _until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_server_takes_up_where_it_ended(hub: HubServer, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", "llama", seed=22)
    hub.add("mlx-community/Killed", model)
    hold = threading.Event()
    hub.fail(WEIGHTS, hold=hold)
    with Server(**environment(hub, tmp_path)) as server:
        with server.stream("/api/pull", model="mlx-community/Killed") as events:
            next(e for e in events if e.get("completed", 0) > 100_000 and "safetensors" in e["status"])
            tmp = server.models / ".ollmlx" / "tmp"
            _until(lambda: any(_noted(f) > 100_000 for f in tmp.glob(".ollmlx-part-*.json")))
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        hold.set()
        server.http.close()
        _until(lambda: not server.runner_processes())
        hub.reset()
        server.start()
        no_traces(server, "mlx-community/Killed")
        assert pull(server, "mlx-community/Killed")[-1] == {"status": "success"}
        assert 0 < hub.body_bytes(".") <= size(model) - 100_000
        assert answer(server, "mlx-community/Killed")


def _noted(state: Path) -> int:
    try:
        return sum(part["done"] for part in json.loads(state.read_text())["parts"])
    except (OSError, ValueError):
        return 0


def test_wrong_bytes_leave_the_earlier_version(hub: HubServer, server: Server, tmp_path: Path) -> None:
    first, second = (make_model(tmp_path / str(i), "llama", seed=30 + i) for i in range(2))
    repository = hub.add("mlx-community/Wrong", first)
    pull(server, "mlx-community/Wrong")
    said = answer(server, "mlx-community/Wrong")
    repository.commit(read(second))
    hub.fail(WEIGHTS, corrupt=True)
    error = pull(server, "mlx-community/Wrong")[-1]["error"]
    assert error.startswith("mlx-community/Wrong: digest mismatch") and "\n" not in error
    server.post("/api/generate", model="mlx-community/Wrong", keep_alive=0)
    assert answer(server, "mlx-community/Wrong") == said
    assert pull(server, "mlx-community/Wrong")[-1] == {"status": "success"}
    assert answer(server, "mlx-community/Wrong") != said
    # The first version's weights are gone, as nothing needs them.
    assert not (
        server.models / "blobs" / f"sha256-{sha256((first / 'model.safetensors').read_bytes())}"
    ).exists()


def test_a_repository_that_changes_during_a_pull(hub: HubServer, server: Server, tmp_path: Path) -> None:
    first, second = (make_model(tmp_path / str(i), "llama", seed=40 + i) for i in range(2))
    repository = hub.add("mlx-community/Changing", first)
    hold = threading.Event()
    hub.fail(WEIGHTS, hold=hold)
    with server.stream("/api/pull", model="mlx-community/Changing") as events:
        next(e for e in events if e.get("completed", 0) > 100_000 and "safetensors" in e["status"])
        repository.commit(read(second))
        hold.set()
        assert list(events)[-1] == {"status": "success"}
    said = answer(server, "mlx-community/Changing")
    assert pull(server, "mlx-community/Changing")[-1] == {"status": "success"}
    assert answer(server, "mlx-community/Changing") != said


# What is refused, with what it says. Nothing of the weights may have been asked for.
REFUSALS = {
    "Code": ({"config.json": {"model_type": "llama", "model_file": "mine.py"}}, "needs code of its own"),
    "Remote": (
        {"config.json": {"model_type": "mystery", "auto_map": {"AutoModelForCausalLM": "m.M"}}},
        "needs code of its own (trust_remote_code), which is never executed",
    ),
    "Unknown": ({"config.json": {"model_type": "mystery"}}, 'has the architecture "mystery", which mlx-lm'),
    "Pickle": (
        {"model.safetensors": None, "pytorch_model.bin": b"x"},
        "only pickle weights (pytorch_model.bin)",
    ),
    "Empty": ({"model.safetensors": None}, "there are no weights"),
    "No-Config": ({"config.json": None}, "config.json is missing"),
    "No-Tokenizer": ({"tokenizer.json": None, "tokenizer_config.json": None}, "there is no tokenizer"),
    "Adapter": (
        {
            "config.json": None,
            "model.safetensors": None,
            "adapters.safetensors": b"x",
            "adapter_config.json": b"{}",
        },
        "this is an adapter and no model",
    ),
    "Shard": (
        {"model.safetensors": None, "model-00001-of-00002.safetensors": b"x"},
        "incomplete: model-00002-of-00002.safetensors is missing",
    ),
    "Broken-Config": ({"config.json": b"{"}, "config.json is no JSON object"),
    "Pointer": ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1"}, "is a Git LFS pointer"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_models_that_cannot_work(hub: HubServer, server: Server, tiny: Path, kind: str) -> None:
    changes, text = REFUSALS[kind]
    files = read(tiny) | {p: json.dumps(c).encode() if isinstance(c, dict) else c for p, c in changes.items()}
    name = f"mlx-community/Refused-{kind}"
    hub.add(name, {path: content for path, content in files.items() if content is not None})
    error = pull(server, name)[-1]["error"]
    assert text in error and "\n" not in error
    assert kind == "Pointer" or not hub.requests(WEIGHTS)
    no_traces(server, name)


def test_errors_of_the_hub_are_one_sentence(hub: HubServer, server: Server, tiny: Path) -> None:
    hub.add("mlx-community/Locked", tiny, gated={"alice"})
    hub.add("mlx-community/Hidden", tiny, private=True)
    hub.add("mlx-community/Down", tiny)
    hub.add("mlx-community/Vanishing", make_files(tiny, b"1"))
    hub.add("mlx-community/Forbidden", make_files(tiny, b"2"))
    hub.fail(r"^/api/models/mlx-community/Down", status=503, times=9)
    hub.fail(r"/Vanishing/resolve/.*safetensors", status=404)
    hub.fail(r"/Forbidden/resolve/.*safetensors", status=403)
    for name, text in {
        "Locked": f'is gated: visit {hub.url}/mlx-community/Locked and accept its conditions, then run "ollmlx login"',
        "Hidden": f'there is no model "mlx-community/Hidden" on {hub.url}, or it is private',
        "Lockd": "did you mean mlx-community/Locked?",
        "Down": f"{hub.url} answered 503",
        "Vanishing": "mlx-community/Vanishing changed on the hub during the pull",
        "Forbidden": f"needs a login: visit {hub.url}/mlx-community/Forbidden",
    }.items():
        error = pull(server, f"mlx-community/{name}")[-1]["error"]
        assert text in error and "\n" not in error, error
        no_traces(server, f"mlx-community/{name}")
        response = server.http.post("/api/pull", json={"model": f"mlx-community/{name}", "stream": False})
        assert response.status_code in (200, 500)


def make_files(model: Path, salt: bytes) -> dict[str, bytes]:
    """Files with weights that no other model has."""
    files = read(model)
    return files | {"model.safetensors": files["model.safetensors"] + salt}


def test_a_disk_that_is_too_small(hub: HubServer, server: Server, tiny: Path) -> None:
    hub.add("mlx-community/Huge", tiny).sizes["model.safetensors"] = 10**15
    error = pull(server, "mlx-community/Huge")[-1]["error"]
    assert error.startswith("not enough disk space") and "\n" not in error
    assert not hub.requests(WEIGHTS)


def test_a_hub_that_cannot_be_reached(server: Server, tmp_path: Path) -> None:
    with Server(HOME=str(tmp_path), HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9") as lonely:
        began = time.monotonic()
        error = pull(lonely, "mlx-community/Anything")[-1]["error"]
        assert error.startswith("http://127.0.0.1:9 cannot be reached") and "\n" not in error
        assert time.monotonic() - began < 30
        # The process that asks ends with its server, and another one takes its place when it is killed.
        (asking,) = [p for p in lonely.runner_processes() if "hub" in p.cmdline()]
        asking.kill()
        asking.wait()
        assert "cannot be reached" in pull(lonely, "mlx-community/Anything")[-1]["error"]
        assert len([p for p in lonely.runner_processes() if "hub" in p.cmdline()]) == 1
        left = lonely.runner_processes()
        lonely.stop()
        assert not any(p.is_running() for p in left)
