"""Pieces of prompts computed in one pass with rows that decode: by which models, and with the same text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm
import pytest
from mlx import nn
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.mlxlm import CacheTraits, LoadedModel, NewRow, make_batch, mixed, repairs, warm_up
from ollmlx.runner.mlx.mlxlm.mixed import Mixing
from ollmlx.runner.mlx.sampling import make_sampler, settings_from_options
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import ARCHITECTURES, MORE_ARCHITECTURES, VOCAB_SIZE

# They hand masks, keys and values to attention as they are; in some of them other layers are recurrent.
MIXING = dict.fromkeys(
    "cohere2 deepseek_v2 exaone4 gemma3_text gemma4_text gpt2 gpt_neox gpt_oss llama minicpm3 ministral3 mixtral phi3"
    " qwen2 qwen3 qwen3_moe falcon_h1 granitemoehybrid jamba lfm2 nemotron_h qwen3_next".split(),
    Mixing.ATTENTION,
)
# They do more with keys and values, or with masks.
MIXING |= dict.fromkeys("deepseek_v3 gemma2".split(), Mixing.LAYERS)
# They compute one row at a time: caches that cannot be joined, and code that fails with several rows.
LONE = {"afm7", "gpt_bigcode", "internlm2", "llama4", "nemotron-nas"}


@pytest.fixture
def attention(plain_mlx: None) -> None:
    mixed.install()
    repairs.install()


@pytest.mark.usefixtures("attention")
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES | MORE_ARCHITECTURES))
def test_a_long_prompt_beside_rows_changes_no_text(
    architecture: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = mlx_lm.load(str(tiny_model(architecture)))
    # No token ends an answer.
    loaded = LoadedModel(model, SimpleNamespace(eos_token_ids=()), {"model_type": architecture})
    traits = warm_up(loaded)
    assert traits.mixing == MIXING.get(architecture)
    assert traits.batches == (architecture not in LONE)
    passes = []
    long = [i * 7 % 251 for i in range(400)]
    monkeypatch.setattr(mixed, "forward", _watched(mixed.forward, passes))
    batch = make_batch(loaded, traits)
    rows = [[5, 6, 7, 8], [9, 8, 7, 6, 5, 4, 3], [3, 4]]
    said: dict[int, list[int]] = {batch.insert(_row(tokens, 60)): [] for tokens in rows[:1]}
    for step in range(300):
        # The first is alone, and has a cache without a mask, when the long prompt begins.
        if step == 8:
            said[batch.insert(_row(long, 12))] = []
        if step == 11:
            said |= {batch.insert(_row(tokens, 50)): [] for tokens in rows[1:]}
        for token in batch.step()[1]:
            said[token.uid].append(token.id)
    expected = [
        _alone(model, tokens, n) for tokens, n in ((rows[0], 60), (long, 12), (rows[1], 50), (rows[2], 50))
    ]
    assert list(said.values()) == expected
    assert bool(passes) == bool(traits.mixing)
    if traits.mixing:
        assert {rows for rows, _ in passes} >= {1, 3}, "beside one row, and beside several"


class Altered:
    """A model in all but what subclasses compute."""

    def __init__(self, model: object) -> None:
        self.model = model

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


def test_a_model_whose_attention_is_its_own_is_not_mixed(tiny_model: Callable[[str], Path]) -> None:
    """One that would give wrong text is found out by the numbers."""
    model, _ = mlx_lm.load(str(tiny_model("llama")))

    class Forgetful(Altered):
        """Rows see themselves only, as if the pass were of prompts of one token."""

        def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
            return model(tokens, cache=cache if tokens.shape[1] > 1 else mlx_cache.make_prompt_cache(model))

    class Unmoved(Altered):
        """It counts positions from the start of each pass."""

        def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
            for layer in cache:
                if isinstance(layer, mixed._MixedCache):
                    layer.offset = layer.offset * 0
            return model(tokens, cache=cache)

    mixed.install()
    assert traits_of(model).mixing is Mixing.ATTENTION
    assert traits_of(Unmoved(model)).mixing is Mixing.LAYERS
    assert traits_of(Forgetful(model)).mixing is None


def test_a_trial_fails_no_load(tiny_model: Callable[[str], Path]) -> None:
    """What a model does with several rows, or with tokens that it does not have, is its own affair."""
    model, _ = mlx_lm.load(str(tiny_model("llama")))

    class Lone(Altered):
        """It has two tokens, and memory for few of them."""

        def __init__(self, most: int) -> None:
            super().__init__(model)
            self._most = most

        def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
            assert tokens.max().item() < 2
            if tokens.size > self._most:
                raise MemoryError
            return model(tokens, cache=cache)[..., :2]

    mixed.install()
    assert [(t.batches, t.mixing) for t in (traits_of(Lone(most)) for most in (1, 2, 4))] == [
        (False, None),
        (True, None),
        (True, Mixing.ATTENTION),
    ]


def test_rows_that_alter_each_other_are_not_joined(tiny_model: Callable[[str], Path]) -> None:
    model, _ = mlx_lm.load(str(tiny_model("llama")))

    class Unmasked(Altered):
        """Its shorter rows see the padding before them."""

        def __call__(self, tokens: mx.array, cache: list[object]) -> mx.array:
            for layer in cache:
                if isinstance(layer, mlx_cache.BatchKVCache):
                    layer.left_padding = layer.left_padding * 0
            return model(tokens, cache=cache)

    mixed.install()
    assert traits_of(model).batches
    assert not traits_of(Unmasked(model)).batches


@pytest.mark.parametrize(
    ("device", "dtype", "strict"),
    [(mx.cpu, mx.float32, True), (mx.cpu, mx.bfloat16, False), (mx.gpu, mx.float32, False)],
)
def test_rounding_is_told_from_wrong_logits_by_what_computes(
    device: mx.DeviceType, dtype: mx.Dtype, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: device)
    model = nn.Linear(4, 4)
    model.set_dtype(dtype)
    # Of 32 bits in any case, as some models make them in the end.
    logits = mx.arange(100.0)
    mixed.check(model, logits + 0.001, logits)
    for wrong, refused in ((logits + 1, strict), (logits[::-1], True)):
        with pytest.raises(ValueError, match="logits differ") if refused else contextlib.nullcontext():
            mixed.check(model, wrong, logits)


def traits_of(model: object) -> CacheTraits:
    return warm_up(LoadedModel(model, SimpleNamespace(eos_token_ids=()), {}))


@pytest.mark.parametrize(("rows", "layers", "most"), [(64, 20, 128), (640, 2, 16), (640, 40, 40)])
def test_an_output_layer_that_is_most_of_a_model_is_spared(rows: int, layers: int, most: int) -> None:
    model = nn.Sequential(
        nn.Linear(32, rows, bias=False), *(nn.Linear(32, 64, bias=False) for _ in range(layers))
    )
    assert mixed.most_tokens(model, rows) == most


def _row(tokens: list[int], most: int) -> NewRow:
    return NewRow(
        tokens, most, make_sampler(settings_from_options(pb.Options(temperature=0), VOCAB_SIZE), None)
    )


def _alone(model: object, tokens: list[int], most: int) -> list[int]:
    said: list[int] = []
    cache = mlx_cache.make_prompt_cache(model)
    inputs = tokens
    while len(said) < most:
        said.append(int(mx.argmax(model(mx.array([inputs]), cache=cache)[0, -1]).item()))
        inputs = said[-1:]
    return said


def _watched(forward: Callable[..., mx.array], passes: list[tuple[int, int]]) -> Callable[..., mx.array]:
    """`forward`, which notes the numbers of rows and of tokens."""

    def watched(
        model: object, inputs: mx.array, caches: object, tokens: list[int], *more: object
    ) -> mx.array:
        passes.append((inputs.size, len(tokens)))
        return forward(model, inputs, caches, tokens, *more)

    return watched
