"""The converter process: what it writes is what mlx-lm's own converter writes, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from ollmlx.runner.v1 import converter_pb2 as cpb
from ollmlx.runner.v1 import converter_pb2_grpc as cpb_grpc
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.embedding_models import minilm
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_models import make_adapter, make_model, peft_adapter


@pytest.fixture(scope="module")
def converter() -> Iterator[RunnerProcess]:
    with RunnerProcess(engine="convert") as process:
        yield process


@pytest.fixture(scope="module")
def stub(converter: RunnerProcess) -> cpb_grpc.ConverterStub:
    return cpb_grpc.ConverterStub(converter.channel)


def quantize(
    stub: cpb_grpc.ConverterStub, model: Path, output: Path, **scheme: object
) -> list[cpb.QuantizeProgress]:
    output.mkdir(exist_ok=True)
    return list(
        stub.Quantize(
            cpb.QuantizeRequest(
                model_path=str(model), model_name="m:latest", output_path=str(output),
                scheme=cpb.QuantizationScheme(**scheme),
            ),
            timeout=120,
        )
    )  # fmt: skip


def test_it_is_a_runner_process_without_a_model(converter: RunnerProcess) -> None:
    assert converter.handshake["engine"] == "convert"
    assert converter.stub.Status(pb.StatusRequest()).state == pb.StatusResponse.STATE_IDLE
    with pytest.raises(grpc.RpcError) as failure:
        list(converter.stub.Load(pb.LoadRequest()))
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("architecture", "scheme", "arguments"),
    [
        ("llama", {"mode": "affine", "bits": 4}, {"q_bits": 4}),
        ("llama", {"mode": "affine", "bits": 3, "group_size": 32}, {"q_bits": 3, "q_group_size": 32}),
        ("qwen3_moe", {"mode": "affine", "bits": 8}, {"q_bits": 8}),
        ("llama", {"mode": "mxfp4"}, {"q_mode": "mxfp4"}),
        ("llama", {"mode": "mxfp8"}, {"q_mode": "mxfp8"}),
        ("llama", {"mode": "nvfp4"}, {"q_mode": "nvfp4"}),
        (
            "llama",
            {"mode": "affine", "recipe": "mixed_2_6"},
            {"q_bits": 2, "q_group_size": 64, "quant_predicate": "mixed_2_6"},
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_the_result_is_that_of_mlx_lm(
    stub: cpb_grpc.ConverterStub,
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    architecture: str,
    scheme: dict,
    arguments: dict,
) -> None:
    import mlx.core as mx
    import mlx_lm

    model = tiny_model(architecture)
    mlx_lm.convert(str(model), str(tmp_path / "reference"), quantize=True, **arguments)
    messages = quantize(stub, model, tmp_path / "output", **scheme)

    assert messages[0].bytes_done == 0 < messages[0].bytes_total == messages[-1].bytes_done
    files = [m.file for m in messages if m.file]
    assert files == ["model.safetensors", "model.safetensors.index.json", "config.json"]
    assert sorted(files) == sorted(p.name for p in (tmp_path / "output").iterdir())
    got = mx.load(str(tmp_path / "output" / "model.safetensors"))
    want = mx.load(str(tmp_path / "reference" / "model.safetensors"))
    assert got.keys() == want.keys()
    assert all(mx.array_equal(got[name], want[name]) for name in want)
    configurations = [json.loads((tmp_path / d / "config.json").read_text()) for d in ("output", "reference")]
    assert configurations[0] == configurations[1]


def test_the_weights_take_the_type_of_the_configuration(stub: cpb_grpc.ConverterStub, tmp_path: Path) -> None:
    import mlx.core as mx

    model = make_model(tmp_path / "model", "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    quantize(stub, model, tmp_path / "output", mode="affine")
    weights = mx.load(str(tmp_path / "output" / "model.safetensors"))
    assert weights["model.layers.0.self_attn.q_proj.scales"].dtype == mx.bfloat16
    assert weights["model.norm.weight"].dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        ({"mode": "affine", "bits": 7}, "weights cannot have 7 bits"),
        ({"mode": "affine", "group_size": 48}, "groups cannot have 48 weights"),
        ({"mode": "q4_K_M"}, "there is no quantization mode 'q4_K_M'"),
        ({"mode": "nvfp4", "bits": 8}, "nvfp4 always has 4 bits and groups of 16"),
        ({"mode": "affine", "recipe": "mixed_1_2"}, "there is no recipe 'mixed_1_2'"),
        ({"mode": "mxfp4", "recipe": "mixed_2_6"}, "recipes of mode affine are mixed_2_6"),
    ],
)
def test_schemes_that_are_none(
    stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path, scheme: dict, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        quantize(stub, tiny_model("llama"), tmp_path / "output", **scheme)
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert text in failure.value.details()


def test_a_scheme_that_does_not_fit_the_model(
    stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        quantize(stub, tiny_model("mamba"), tmp_path / "a", mode="affine", recipe="mixed_4_6")
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "this one has none; use int4 or int8" in failure.value.details()
    with pytest.raises(grpc.RpcError) as failure:
        quantize(stub, make_model(tmp_path / "odd", "llama", hidden_size=48, intermediate_size=96, head_dim=12),
                 tmp_path / "b", mode="affine", group_size=128)  # fmt: skip
    assert "none of its layers can be split into groups of 128 weights" in failure.value.details()
    assert not list((tmp_path / "b").iterdir())


def test_a_model_whose_code_ends_the_process_is_refused(
    stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_model("llama"), tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failure:
            quantize(stub, path, tmp_path / "out", mode="affine", bits=4)
        assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (
            "m:latest cannot be read: for models of this type mlx-lm needs the Python package hf_olmo"
            in failure.value.details()
        )


def test_what_is_quantized_stays_as_it_is(
    stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    quantize(stub, tiny_model("llama"), tmp_path / "once", mode="affine")
    with pytest.raises(grpc.RpcError) as failure:
        quantize(stub, tmp_path / "once", tmp_path / "twice", mode="affine")
    assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "m:latest is quantized already" in failure.value.details()


def test_cancelling_ends_the_work_and_the_next_is_served(
    converter: RunnerProcess, stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    # Some 50 MB of weights: it does not end before the first message is read.
    big = make_model(tmp_path / "big", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    (tmp_path / "output").mkdir()
    request = cpb.QuantizeRequest(
        model_path=str(big), output_path=str(tmp_path / "output"),
        scheme=cpb.QuantizationScheme(mode="affine", bits=8),
    )  # fmt: skip
    call = stub.Quantize(request, timeout=120)
    assert next(call).bytes_done == 0
    call.cancel()
    # The cancelled work sees between two parts that it is not wanted; until then there is no room.
    messages, deadline = [], time.monotonic() + 60
    while not messages and time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            messages = quantize(stub, tiny_model("llama"), tmp_path / "next", mode="affine")
    assert messages[-1].file == "config.json"


def import_adapter(stub: cpb_grpc.ConverterStub, model: Path, adapter: Path, output: Path) -> list[str]:
    output.mkdir(exist_ok=True)
    request = cpb.ImportAdapterRequest(
        model_path=str(model), model_name="m:latest", adapter_path=str(adapter), output_path=str(output)
    )
    return list(stub.ImportAdapter(request, timeout=60).files)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_of_mlx_lm_and_peft(
    stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path, dora: bool
) -> None:
    import mlx.core as mx
    import mlx_lm

    model = tiny_model("llama")
    adapter = make_adapter(tmp_path / "adapter", model, dora=dora)
    assert import_adapter(stub, model, adapter, tmp_path / "none") == []

    peft = peft_adapter(tmp_path / "peft", adapter)
    assert import_adapter(stub, model, peft, tmp_path / "out") == [
        "adapters.safetensors",
        "adapter_config.json",
    ]

    tokens = mx.array([[72, 101, 108, 108, 111]])
    results = [
        mlx_lm.load(str(model), adapter_path=p and str(p))[0](tokens)
        for p in (adapter, tmp_path / "out", None)
    ]
    assert mx.allclose(results[0], results[1], atol=1e-4)
    assert not mx.allclose(results[0], results[2], atol=1e-2)


def test_adapters_that_do_not_fit(
    stub: cpb_grpc.ConverterStub, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    import mlx.core as mx

    model = tiny_model("llama")
    other = make_model(
        tmp_path / "other", "llama", hidden_size=32, num_attention_heads=2, num_key_value_heads=1
    )
    adapter = make_adapter(tmp_path / "adapter", model)
    peft = peft_adapter(tmp_path / "peft", adapter)
    (peft / "adapter_config.json").write_text(
        json.dumps(json.loads((peft / "adapter_config.json").read_text()) | {"modules_to_save": ["lm_head"]})
    )
    huge = shutil.copytree(adapter, tmp_path / "huge")
    config = json.loads((huge / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 1 << 40
    (huge / "adapter_config.json").write_text(json.dumps(config))
    hollow = shutil.copytree(adapter, tmp_path / "hollow")
    weights = mx.load(str(hollow / "adapters.safetensors"))
    first = sorted(weights)[0].rpartition(".")[0]
    kept = {name: array for name, array in weights.items() if name.startswith(first)}
    mx.save_safetensors(str(hollow / "adapters.safetensors"), kept)
    for base, directory, text in (
        (model, hollow, "matrices and its weights lack"),
        (other, adapter, "does not match model parameter shape"),
        (model, peft, "its modules_to_save is ['lm_head']"),
        (model, huge, "its rank is"),
        (model, tmp_path / "other", "it has no adapters.safetensors"),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            import_adapter(stub, base, directory, tmp_path / "out")
        assert failure.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert text in failure.value.details()
        assert str(tmp_path) not in failure.value.details()


def test_an_encoder_keeps_its_sense(stub: cpb_grpc.ConverterStub, tmp_path: Path) -> None:
    model = shutil.copytree(minilm(), tmp_path / "model")
    # Beside the weights it has no files of the later stages.
    (model / "modules.json").unlink(missing_ok=True)
    messages = quantize(stub, model, tmp_path / "output", mode="affine", bits=8)
    assert messages[-1].bytes_total < (model / "model.safetensors").stat().st_size / 3
    shutil.copytree(tmp_path / "output", model, dirs_exist_ok=True)
    sentences = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Stock prices fell on Monday."]
    with RunnerProcess() as process:
        process.load(model)
        answer = process.stub.Embed(pb.EmbedRequest(inputs=sentences, normalize=True), timeout=60)
    cat, kitten, stocks = (np.array(e.values) for e in answer.embeddings)
    assert cat @ kitten > 0.6 > 0.2 > cat @ stocks
