"""Life and death of a runner process: handshake, load, lifeline, shutdown, logs."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import RunnerProcess

LONG = {"prompt": pb.Prompt(text="Once upon a time"), "options": pb.Options(num_predict=900)}


@pytest.fixture
def process() -> Iterator[RunnerProcess]:
    with RunnerProcess() as process:
        yield process


def test_handshake_comes_before_the_heavy_imports(process: RunnerProcess) -> None:
    assert process.handshake["protocol"] == 1
    assert process.handshake["api"] == "ollmlx.runner.v1"
    assert process.handshake["engine"] == "mlx"
    assert process.handshake["pid"] == process.process.pid
    assert {"python", "mlx", "mlx-lm"} <= set(process.handshake["versions"])
    loaded = Path(f"/proc/{process.process.pid}/maps")
    if loaded.exists():
        assert "libmlx" not in loaded.read_text()


def test_it_loads_without_pytorch(process: RunnerProcess, tiny_model: Callable[[str], Path]) -> None:
    """transformers would import it where it is installed: seconds, and half a gigabyte."""
    process.load(tiny_model("llama"))
    loaded = Path(f"/proc/{process.process.pid}/maps")
    if loaded.exists():
        assert "libmlx" in loaded.read_text()
        assert "libtorch" not in loaded.read_text()


def test_the_socket_is_private(process: RunnerProcess) -> None:
    assert stat.S_IMODE(process.socket.stat().st_mode) & 0o077 == 0


def test_it_dies_with_its_host(process: RunnerProcess, tiny_model: Callable[[str], Path]) -> None:
    process.load(tiny_model("llama"))
    with process.session() as session:
        session.next_delta(session.start(**LONG))
        started = time.monotonic()
        process.hang_up()
        process.process.wait(2)
    assert time.monotonic() - started < 1


def test_without_a_host_it_says_how_to_start_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ollmlx.runner", "--socket", "/nonexistent/r.sock"],
        capture_output=True, text=True, timeout=30, close_fds=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert "ollmlx serve" in done.stderr


def test_load_streams_progress_and_tells_the_model(
    process: RunnerProcess, tiny_model: Callable[[str], Path]
) -> None:
    messages = list(process.stub.Load(pb.LoadRequest(model_path=str(tiny_model("llama")), num_ctx=512)))
    stages = [m.stage for m in messages]
    assert stages == sorted(stages)
    assert {pb.LoadProgress.STAGE_IMPORT, pb.LoadProgress.STAGE_WEIGHTS, pb.LoadProgress.STAGE_READY} <= set(
        stages
    )
    weights = [m for m in messages if m.stage == pb.LoadProgress.STAGE_WEIGHTS]
    assert weights[-1].bytes_done == weights[-1].bytes_total > 0
    model = messages[-1].model
    assert (model.architecture, model.context_length, model.max_context_length) == ("llama", 512, 2048)
    assert model.parameter_count * 4 == model.weight_bytes
    # 2 layers, keys and values, 2 heads of 16 float32 numbers
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert model.device in ("cpu", "metal", "cuda")
    status = process.stub.Status(pb.StatusRequest())
    assert status.state == pb.StatusResponse.STATE_READY
    assert status.memory.active_bytes >= model.weight_bytes


def test_calls_before_load_and_a_second_load_are_refused(
    process: RunnerProcess, tiny_model: Callable[[str], Path]
) -> None:
    assert process.stub.Status(pb.StatusRequest()).state == pb.StatusResponse.STATE_IDLE
    with process.session() as session:
        assert session.run(**LONG).failed.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    process.load(tiny_model("llama"))
    with pytest.raises(grpc.RpcError) as err:
        process.load(tiny_model("llama"))
    assert err.value.code() == grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no config", "no config.json"),
        ("bad json", "invalid JSON"),
        ("unknown architecture", "no_such_model not supported"),
        ("missing package", "needs the Python package hf_olmo, which is not installed"),
        ("truncated weights", ""),
        ("remote code", ""),
    ],
)
def test_unusable_files_are_one_clear_error_and_another_load_works(
    process: RunnerProcess, tiny_model: Callable[[str], Path], tmp_path: Path, damage: str, message: str
) -> None:
    good = tiny_model("llama")
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in good.iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    config = json.loads((good / "config.json").read_text())
    if damage == "no config":
        (bad / "config.json").unlink()
    elif damage == "bad json":
        (bad / "config.json").write_text("{")
    elif damage == "unknown architecture":
        (bad / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    elif damage == "missing package":
        # mlx-lm ends the process.
        (bad / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    elif damage == "truncated weights":
        weights = bad / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    else:
        (bad / "evil.py").write_text("open('pwned', 'w')")
        (bad / "config.json").write_text(json.dumps(config | {"model_file": "evil.py"}))

    with pytest.raises(grpc.RpcError) as err:
        process.load(bad, model_name="broken:latest")
    assert err.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "broken:latest" in err.value.details()
    assert message in err.value.details()
    assert "\n" not in err.value.details()
    assert not list(process.socket.parent.glob("pwned"))
    assert process.stub.Status(pb.StatusRequest()).state == pb.StatusResponse.STATE_IDLE
    assert process.load(good).architecture == "llama"


def test_a_cancelled_load_leaves_an_idle_runner(
    process: RunnerProcess, tiny_model: Callable[[str], Path]
) -> None:
    call = process.stub.Load(pb.LoadRequest(model_path=str(tiny_model("llama"))))
    next(call)
    call.cancel()
    deadline = time.monotonic() + 10
    while process.stub.Status(pb.StatusRequest()).state != pb.StatusResponse.STATE_IDLE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.load(tiny_model("llama")).architecture == "llama"


@pytest.mark.parametrize("how", ["shutdown", "sigterm"])
def test_stopping_fails_requests_and_exits_cleanly(
    process: RunnerProcess, tiny_model: Callable[[str], Path], how: str
) -> None:
    process.load(tiny_model("llama"))
    with process.session() as session:
        request = session.start(**LONG)
        session.next_delta(request)
        if how == "shutdown":
            process.stub.Shutdown(pb.ShutdownRequest())
        else:
            os.kill(process.process.pid, signal.SIGTERM)
        failed = session.result(request).failed
        assert failed.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert process.process.wait(5) == 0


def test_shutdown_drains(process: RunnerProcess, tiny_model: Callable[[str], Path]) -> None:
    process.load(tiny_model("llama"))
    with process.session() as session:
        request = session.start(prompt=pb.Prompt(text="drain"), options=pb.Options(num_predict=50))
        session.next_delta(request)
        process.stub.Shutdown(pb.ShutdownRequest(drain_ns=10_000_000_000))
        assert session.result(request).finished.usage.completion_tokens == 50
    assert process.process.wait(5) == 0


def test_logs_are_json_lines(process: RunnerProcess, tiny_model: Callable[[str], Path]) -> None:
    process.load(tiny_model("llama"))
    entries = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    [loaded] = [e for e in entries if e["msg"] == "model loaded"]
    assert loaded["level"] == "info"
    assert loaded["attrs"]["architecture"] == "llama"
