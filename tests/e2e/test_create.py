"""Models that are made with the engine's help: quantized ones, and adapters on a base."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.demo import DEMO
from tests.support.server import Server
from tests.support.tiny_models import make_model

CAPITAL = {"prompt": "What is the capital of France?", "think": False, "options": {"temperature": 0}}


def test_a_quantized_model_answers_and_says_what_it_is(server: Server) -> None:
    modelfile = server.root / "Modelfile-quantized"
    modelfile.write_text(f"FROM {DEMO}\nSYSTEM You are terse.\n")
    done = server.cli("create", "quantized", "-f", str(modelfile), "-q", "int4")
    assert done.returncode == 0, done.stderr
    assert "quantizing F32 model to int4" in done.stdout + done.stderr
    shown = server.post("/api/show", model="quantized")
    assert shown["details"]["quantization_level"] == "4-bit"
    assert shown["model_info"]["general.quantization_bits"] == 4
    assert shown["system"] == "You are terse."
    sizes = {m["name"]: m["size"] for m in server.http.get("/api/tags").json()["models"]}
    assert sizes["quantized:latest"] < sizes["demo:latest"] / 3
    assert "Paris" in server.post("/api/generate", model="quantized", **CAPITAL)["response"]

    refused = server.cli("create", "again", "-f", "-", "-q", "int8", stdin="FROM quantized")
    assert refused.returncode == 1
    assert 'model "quantized" is quantized already (4-bit)' in refused.stderr


def test_progress_of_a_quantization_is_streamed(server: Server) -> None:
    with server.stream("/api/create", model="fp8", **{"from": "demo", "quantize": "MXFP8"}) as lines:
        seen = list(lines)
    bars = [m for m in seen if m["status"] == "quantizing F32 model to mxfp8" and "total" in m]
    assert bars[-1]["completed"] == bars[-1]["total"] > 0
    assert seen[-1] == {"status": "success"}
    assert server.post("/api/show", model="fp8")["details"]["quantization_level"] == "mxfp8"
    assert not any("convert" in p.cmdline() for p in server.runner_processes())


def test_hanging_up_ends_a_quantization_without_a_trace(server: Server, tmp_path: Path) -> None:
    big = make_model(tmp_path / "big", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    server.create("big", big)
    with server.stream("/api/create", model="given-up", **{"from": "big", "quantize": "int8"}) as lines:
        assert next(m for m in lines if "total" in m)
        converters = [p for p in server.runner_processes() if "convert" in p.cmdline()]
        assert len(converters) == 1
    converters[0].wait(10)
    temporary = server.models / ".ollmlx" / "tmp"
    deadline = time.monotonic() + 10
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list(temporary.iterdir())
    assert server.http.post("/api/show", json={"model": "given-up"}).status_code == 404
