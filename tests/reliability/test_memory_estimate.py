"""What the host reckons a model will take, against what it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.server import Server
from tests.support.tiny_models import make_model

MB = 1 << 20
# About 120 MB in float32.
LARGE = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4, "head_dim": 128}
WITHIN = 0.15


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = {"OLLMLX_LOG_FORMAT": "json", "OLLAMA_MAX_LOADED_MODELS": "1", "OLLAMA_DEBUG": "1"}
    with Server(**environment, OLLMLX_WARM_RUNNER="1") as server:
        # What a runner takes by itself is learnt from the first one that has no model.
        deadline = time.monotonic() + 60
        while "a spare runner is ready" not in server.log:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)
        yield server


def loads(server: Server) -> list[dict]:
    lines = (json.loads(line) for line in server.log.splitlines() if line.startswith("{"))
    return [line for line in lines if line["msg"] == "sched: loading model"]


def ask(server: Server, model: str) -> pb.StatusResponse:
    server.post("/api/generate", model=model, prompt="a" * 100, raw=True, options={"num_predict": 4})
    return server.runner_status()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "4-bit"])
def test_the_whole_process(server: Server, tmp_path: Path, kind: str) -> None:
    """Weights, caches of one request and the runner itself."""
    model = make_model(tmp_path / "m", "llama", **LARGE)
    if kind == "bfloat16":
        in_bfloat16(model)
    if kind == "4-bit":
        server.create("whole-f32", model)
        modelfile = server.root / "Modelfile-q"
        modelfile.write_text(f"FROM {model}")
        done = server.cli("create", "whole-4-bit", "--quantize", "4-bit", "-f", str(modelfile))
        assert done.returncode == 0, done.stderr
    else:
        server.create(f"whole-{kind}", model)
    status = ask(server, f"whole-{kind}")
    reckoned = loads(server)[-1]
    estimate = (
        reckoned["base"] + reckoned["weights"] + status.memory.kv_cache_bytes + status.memory.pool_bytes
    )
    held = status.memory.private_bytes
    assert abs(held - estimate) < WITHIN * held, (held / MB, estimate / MB, reckoned)
    assert abs(status.model.weight_bytes - reckoned["weights"]) < WITHIN * status.model.weight_bytes


def in_bfloat16(model: Path) -> None:
    import mlx.core as mx

    file = model / "model.safetensors"
    weights = {name: array.astype(mx.bfloat16) for name, array in mx.load(str(file)).items()}
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "mlx"})


@pytest.mark.slow
def test_weights_and_caches_of_each_architecture(server: Server, tmp_path: Path) -> None:
    """KV bytes for a token, and weights, as the engine finds them after the load. More are in the host's own tests."""
    for architecture in ("gemma3_text", "deepseek_v2", "mamba"):
        server.create(architecture, make_model(tmp_path / architecture, architecture))
        status = ask(server, architecture)
        reckoned = loads(server)[-1]
        assert abs(status.model.weight_bytes - reckoned["weights"]) <= WITHIN * status.model.weight_bytes, (
            architecture
        )
        assert reckoned["kv_bytes_per_token"] == status.model.kv_bytes_per_token, architecture
