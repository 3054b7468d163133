"""What a runner tells of its memory, and that it keeps within what its host allows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_models import make_model

WARM = ("-m", "ollmlx.runner", "--engine", "mlx", "--warm")


def wait_until_imported(process: RunnerProcess) -> pb.StatusResponse:
    deadline = time.monotonic() + 60
    while not (status := process.stub.Status(pb.StatusRequest())).imported:
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.05)
    return status


def test_a_warm_runner_has_imported_before_it_loads(tiny_model: Callable[[str], Path]) -> None:
    with RunnerProcess(WARM) as process:
        status = wait_until_imported(process)
        assert status.state == pb.StatusResponse.STATE_IDLE
        assert status.device.kind in ("cpu", "metal", "cuda")
        assert 0 < status.memory.private_bytes <= status.memory.resident_bytes
        assert process.load(tiny_model("llama")).architecture == "llama"
    with RunnerProcess() as process:
        assert not process.stub.Status(pb.StatusRequest()).imported, (
            "only a load, or the host's wish, begins it"
        )


def test_caches_keep_within_their_bytes(tmp_path: Path) -> None:
    model = make_model(tmp_path, "llama", endless=True)
    with RunnerProcess(WARM) as process:
        per_token = process.load(model, num_ctx=1024, kv_cache_bytes=1).kv_bytes_per_token
        assert per_token > 0
        # Room for one row of 40 tokens and what it will soon gain, and not for two.
        process.stub.Trim(pb.TrimRequest(kv_cache_bytes=400 * per_token))
        with process.session() as session:
            ids = [
                session.start(prompt=pb.Prompt(text=f"{i} " * 20), options=pb.Options(num_predict=300))
                for i in range(4)
            ]
            widest = 0
            for request_id in ids:
                while session.next_event(request_id).WhichOneof("kind") != "finished":
                    status = process.stub.Status(pb.StatusRequest())
                    widest = max(widest, status.running)
                    assert status.prefix_cache.bytes <= 400 * per_token
            assert widest == 1
            process.stub.Trim(pb.TrimRequest(kv_cache_bytes=4000 * per_token))
            ids = [
                session.start(prompt=pb.Prompt(text=f"{i} " * 20), options=pb.Options(num_predict=300))
                for i in range(4)
            ]
            for request_id in ids:
                session.next_delta(request_id)
            assert process.stub.Status(pb.StatusRequest()).running > 1
            for request_id in ids:
                assert session.result(request_id).finished is not None
        assert process.stub.Status(pb.StatusRequest()).prefix_cache.bytes > 0
        answer = process.stub.Trim(pb.TrimRequest())
        assert process.stub.Status(pb.StatusRequest()).prefix_cache.bytes == 0
        assert answer.kv_cache_bytes <= 400 * per_token
