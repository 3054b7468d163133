"""The sampler against a plain reckoning of Ollama's order: top_k, softmax at temperature, top_p, min_p."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from ollmlx.runner.mlx.sampling import BatchSampler, make_sampler, settings_from_options
from ollmlx.runner.v1 import runner_pb2 as pb

VOCAB = 32
LOGITS = np.random.default_rng(3).normal(0, 3, VOCAB)
LOGPROBS = LOGITS - np.log(np.exp(LOGITS).sum())


def allowed(temperature: float, top_k: int = 0, top_p: float = 1, min_p: float = 0) -> set[int]:
    """The tokens that may be drawn."""
    order = list(np.argsort(-LOGPROBS))[: top_k or None]
    weights = np.exp(LOGPROBS[order] / temperature)
    probs = weights / weights.sum()
    kept, mass = set(), 0.0
    for token, p in zip(order, probs, strict=True):
        if mass < top_p and p >= min_p * probs[0]:
            kept.add(int(token))
        mass += p
    return kept


def draw(count: int = 4000, **options: float) -> set[int]:
    settings = settings_from_options(pb.Options(**options), VOCAB)
    rows = mx.array(np.tile(LOGPROBS, (count, 1)).astype(np.float32))
    return set(BatchSampler([make_sampler(settings, None)] * count)(rows).tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 0.5, "top_k": 10, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 12, "top_p": 0.95, "min_p": 0.05},
        {"temperature": 1.0, "top_p": 0.0},
    ],
)
def test_only_allowed_tokens_are_drawn(options: dict) -> None:
    drawn, expected = draw(**options), allowed(**options)
    if options.get("top_p") == 0:
        expected = {int(np.argmax(LOGPROBS))}
    assert drawn <= expected
    assert len(drawn) >= len(expected) - 2, "rare tokens may be missed, but not many"


def test_draws_follow_the_probabilities() -> None:
    settings = settings_from_options(pb.Options(temperature=1.0, top_k=4), VOCAB)
    rows = mx.array(np.tile(LOGPROBS, (20000, 1)).astype(np.float32))
    drawn = np.array(BatchSampler([make_sampler(settings, None)] * 20000)(rows).tolist())
    top = np.argsort(-LOGPROBS)[:4]
    expected = np.exp(LOGPROBS[top]) / np.exp(LOGPROBS[top]).sum()
    assert np.abs(np.array([(drawn == t).mean() for t in top]) - expected).max() < 0.02


def test_typical_leaves_out_the_improbable() -> None:
    drawn = draw(temperature=1.0, typical_p=0.3)
    assert 0 < len(drawn) < len(draw(temperature=1.0))


@pytest.mark.parametrize("count", [1, 3])
def test_greedy_is_greedy_whatever_else_is_asked_for(count: int) -> None:
    settings = settings_from_options(pb.Options(temperature=0, top_k=3, top_p=0.2), VOCAB)
    rows = mx.array(np.tile(LOGPROBS, (count, 1)).astype(np.float32))
    sample = BatchSampler([make_sampler(settings, 5 + i) for i in range(count)])
    assert sample(rows).tolist() == [int(np.argmax(LOGPROBS))] * count


def test_a_seeded_sampler_repeats_and_can_go_on_later() -> None:
    settings = settings_from_options(pb.Options(temperature=1.5), VOCAB)
    row = mx.array(LOGPROBS.astype(np.float32))[None]
    first, second = (BatchSampler([make_sampler(settings, 9)]) for _ in range(2))
    a, b = [first(row).item() for _ in range(20)], [second(row).item() for _ in range(20)]
    assert a == b
    assert len(set(a)) > 1
    later = BatchSampler([make_sampler(settings, 9, drawn=10)])
    assert [later(row).item() for _ in range(10)] == a[10:]


def test_rows_of_unequal_settings_draw_as_each_would_alone() -> None:
    options = [
        pb.Options(),
        pb.Options(temperature=1.0, top_k=3),
        pb.Options(temperature=2.0),
        pb.Options(temperature=0.7, top_k=12, top_p=0.9, min_p=0.05),
        pb.Options(temperature=1.5, top_p=0.95),
        pb.Options(temperature=1.0, top_k=7, typical_p=0.5),
        pb.Options(temperature=3.0, min_p=0.01),
    ]
    settings = [settings_from_options(o, VOCAB) for o in options]
    alone = [BatchSampler([make_sampler(s, i)]) for i, s in enumerate(settings)]
    together = BatchSampler([make_sampler(s, i) for i, s in enumerate(settings)])
    row = mx.array(LOGPROBS.astype(np.float32))[None]
    rows = mx.concatenate([row] * len(options))
    for _ in range(50):
        assert together(rows).tolist() == [sample(row).item() for sample in alone]
