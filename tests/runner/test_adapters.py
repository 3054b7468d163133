"""LoRA adapters: put on and off in place, apart in the prefix cache, in order of arrival, and refused when unusable."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import RunnerProcess, SessionClient
from tests.support.tiny_models import make_adapter, make_model

PROMPT = "Adapters change what is said. "


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "m", "llama", endless=True)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("adapters")
    return {
        "first": make_adapter(directory / "first", model, seed=1),
        "second": make_adapter(directory / "second", model, seed=2),
        "dora": make_adapter(directory / "dora", model, seed=3, dora=True),
    }


@pytest.fixture(scope="module")
def runner(model: Path) -> Iterator[RunnerProcess]:
    with RunnerProcess() as process:
        process.load(model, num_ctx=1024)
        yield process


def request(adapter: tuple[str, Path] | None = None, tokens: int = 40) -> dict[str, object]:
    fields: dict[str, object] = {
        "prompt": pb.Prompt(text=PROMPT),
        "options": pb.Options(num_predict=tokens, temperature=0),
    }
    if adapter:
        fields["adapter"] = pb.Adapter(name=adapter[0], path=str(adapter[1]))
    return fields


def reference(model: Path, adapter: Path | None) -> str:
    import mlx_lm

    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=str(adapter) if adapter else None)
    ids = tokenizer.encode(PROMPT)
    return tokenizer.decode([r.token for r in mlx_lm.stream_generate(loaded, tokenizer, ids, max_tokens=40)])


def test_text_equals_mlx_lm_with_the_adapter_and_again_without(
    session: SessionClient, model: Path, adapters: dict[str, Path]
) -> None:
    expected = {name: reference(model, path) for name, path in adapters.items()}
    base = reference(model, None)
    assert len({base, *expected.values()}) == 4
    # Twice, so that every answer is also given after every other one, with prefixes in the cache.
    for _ in range(2):
        assert session.run(**request()).content == base
        for name, path in adapters.items():
            assert session.run(**request((name, path))).content == expected[name]


def test_mixed_requests_are_served_in_order(session: SessionClient, adapters: dict[str, Path]) -> None:
    alone = {n: session.run(**request((n, p))).content for n, p in adapters.items()} | {
        "": session.run(**request()).content
    }
    order = ["", "first", "", "second", "first", "first", "dora", ""]
    ids = [session.start(**request((n, adapters[n]) if n else None)) for n in order]
    assert [session.result(i).content for i in ids] == [alone[n] for n in order]


def test_prefixes_are_apart(session: SessionClient, adapters: dict[str, Path]) -> None:
    fresh = ("a new name", adapters["first"])
    assert session.run(**request(fresh)).finished.usage.cached_prompt_tokens == 0
    assert session.run(**request(fresh)).finished.usage.cached_prompt_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("damage", ["missing", "peft", "rank", "full", "shape", "json"])
def test_an_unusable_adapter_is_one_clear_error_and_harms_nobody(
    session: SessionClient, adapters: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    base = session.run(**request()).content
    bad = tmp_path / "bad"
    bad.mkdir()
    for file in adapters["first"].iterdir():
        (bad / file.name).write_bytes(file.read_bytes())
    config = json.loads((bad / "adapter_config.json").read_text())
    if damage in ("missing", "peft"):
        weights = bad / "adapters.safetensors"
        if damage == "peft":
            weights.rename(bad / "adapter_model.safetensors")
        else:
            weights.unlink()
    elif damage == "rank":
        config["lora_parameters"]["rank"] = 10**9
    elif damage == "full":
        config["fine_tune_type"] = "full"
    elif damage == "shape":
        config["lora_parameters"]["rank"] = 5
    (bad / "adapter_config.json").write_text("{" if damage == "json" else json.dumps(config))

    failed = session.run(**request((f"bad {damage}", bad))).failed
    assert failed.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert failed.message.startswith("the adapter cannot be used: ")
    assert session.run(**request()).content == base


def test_adapters_leave_nothing_behind(tmp_path: Path) -> None:
    """MLX's generator keeps the graph of all draws until somebody asks for its state."""
    import mlx.core as mx
    import mlx_lm

    from ollmlx.runner.mlx.mlxlm import AdapterSwitch

    path = make_model(tmp_path / "model", "llama")
    model, _ = mlx_lm.load(str(path))
    mx.eval(mx.random.state)
    switch = AdapterSwitch(model)
    switch.wear("one", make_adapter(tmp_path / "one", path, seed=1))
    wrong = make_adapter(tmp_path / "wrong", path, seed=2)
    mx.save_safetensors(str(wrong / "adapters.safetensors"), {"nobody": mx.zeros((2, 2))})
    with pytest.raises(ValueError, match="nobody"):
        switch.wear("wrong", wrong)
    graph = io.StringIO()
    mx.export_to_dot(graph, *mx.random.state)
    assert "RandomBits" not in graph.getvalue()
