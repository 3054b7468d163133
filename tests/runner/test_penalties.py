"""Bias and penalties of a batch against a plain reckoning for each row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.penalties import Adjustment, BatchAdjuster, adjustment_from_options
from ollmlx.runner.v1 import runner_pb2 as pb

VOCAB = 23


def reckoned(options: dict[str, Any], tokens: Sequence[int], logits: np.ndarray) -> np.ndarray:
    """The logits after `tokens`, each step in float32 as the engine has it."""
    out, one = logits.astype(np.float32).copy(), np.float32
    for token, value in options.get("logit_bias", {}).items():
        out[token] += one(value)
    last_n = options.get("repeat_last_n", -1)
    window = [] if last_n == 0 else list(tokens) if last_n < 0 else list(tokens)[-last_n:]
    repeat = one(options.get("repeat_penalty", 1))
    for token, count in Counter(t for t in window if t < VOCAB).items():
        out[token] = out[token] / repeat if out[token] > 0 else out[token] * repeat
        out[token] -= one(options.get("presence_penalty", 0))
        out[token] -= one(options.get("frequency_penalty", 0)) * one(count)
    return out


def random_options(rng: random.Random) -> dict[str, Any]:
    every = {
        "repeat_last_n": rng.choice([-1, 0, 1, 2, 5, 64]),
        "repeat_penalty": rng.choice([0.5, 1.0, 1.1, 2.0]),
        "presence_penalty": rng.choice([-0.5, 0.0, 1.5]),
        "frequency_penalty": rng.choice([-0.25, 0.0, 0.7]),
        "logit_bias": {rng.randrange(VOCAB): rng.choice([-3.0, 0.5]) for _ in range(rng.randint(0, 3))},
    }
    return {k: every[k] for k in every if rng.random() < 0.7}


def adjust(rows: Sequence[Adjustment | None], histories: Sequence[Sequence[int]]) -> BatchAdjuster:
    return BatchAdjuster(rows, histories, VOCAB)


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_any_settings_are_adjusted_as_each_would_be_alone(seed: int) -> None:
    rng = random.Random(seed)
    options = [random_options(rng) for _ in range(rng.randint(1, 6))]
    wanted = [adjustment_from_options(pb.Options(**o), VOCAB) for o in options]
    # The prompts; some with a placeholder of an image, which is no token of the vocabulary.
    histories = [
        [rng.randrange(VOCAB + (i % 2)) for _ in range(rng.randint(0, 9))] for i in range(len(options))
    ]
    together = adjust(wanted, histories)
    alone = [adjust([w], [h]) for w, h in zip(wanted, histories, strict=True)]
    for step in range(40):
        tokens = [rng.randrange(VOCAB) for _ in options]
        logits = np.random.default_rng(step).normal(0, 3, (len(options), VOCAB)).astype(np.float32)
        inputs = mx.array(tokens, dtype=mx.uint32)
        got = np.array(together(inputs, mx.array(logits), histories))
        for i, history in enumerate(histories):
            one = alone[i](inputs[i : i + 1], mx.array(logits[i : i + 1]), [history])
            assert (np.array(one)[0] == got[i]).all(), (options[i], step)
            expected = reckoned(options[i], [*history, tokens[i]], logits[i])
            np.testing.assert_allclose(got[i], expected, rtol=1e-6, atol=1e-6, err_msg=str(options[i]))
            history.append(tokens[i])
        if step == 20:
            # Another row has come or gone.
            together = adjust(wanted, histories)


def test_penalties() -> None:
    options = pb.Options(repeat_penalty=2, presence_penalty=0.5, frequency_penalty=0.25, repeat_last_n=3)
    process = adjust([adjustment_from_options(options, 4)], [[2, 0, 0]])
    logits = mx.pad(mx.array([[4.0, -4.0, 1.0, 1.0]]), [(0, 0), (0, VOCAB - 4)])
    got = process(mx.array([1]), logits, [[2, 0, 0]]).tolist()[0][:4]
    # Token 2 is out of the window; 0 occurs twice, 1 once.
    assert got == pytest.approx([4 / 2 - 0.5 - 0.5, -4 * 2 - 0.5 - 0.25, 1.0, 1.0])


@pytest.mark.parametrize(
    "options",
    [{}, {"repeat_penalty": 1.0}, {"repeat_last_n": 0, "repeat_penalty": 1.5}, {"repeat_last_n": 64}],
)
def test_nothing_is_done_where_nothing_asks_for_it(options: dict[str, Any]) -> None:
    assert adjustment_from_options(pb.Options(**options), VOCAB) is None


def test_logits_of_less_precision_stay_the_same_beside_a_row_with_penalties() -> None:
    logits = mx.random.normal((2, VOCAB)).astype(mx.bfloat16)
    process = adjust([None, Adjustment(-1, repeat=1.3)], [[1], [2]])
    got = process(mx.array([3, 4]), logits, [[1], [2]])
    assert (got[0] == logits[0]).all()
    assert not (got[1] == logits[1]).all()


def test_what_is_no_bias_is_refused() -> None:
    with pytest.raises(RunnerError, match="token 99"):
        adjustment_from_options(pb.Options(logit_bias={99: 1.0}), VOCAB)


def test_a_batch_and_one_row_after_another_say_the_same(tmp_path: Any) -> None:
    """Rows that come and go, some with penalties, against the same requests one by one."""
    import mlx_lm

    from ollmlx.runner.mlx.mlxlm import LoadedModel, NewRow, make_batch, warm_up
    from ollmlx.runner.mlx.mlxlm.onebyone import OneByOne
    from ollmlx.runner.mlx.sampling import make_sampler, settings_from_options
    from tests.support.tiny_models import make_model

    model, tokenizer = mlx_lm.load(str(make_model(tmp_path / "m", "llama", endless=True)))
    loaded = LoadedModel(model, tokenizer, {})
    rng = random.Random(1)
    options = [pb.Options(**random_options(rng)) for _ in range(5)] + [pb.Options(repeat_penalty=1.1)]

    def rows() -> list[NewRow]:
        return [
            NewRow(
                [(7 * i + k) % 250 for k in range(5 + 6 * i)],
                15 + 5 * i,
                make_sampler(settings_from_options(pb.Options(), 259), None),
                adjustment_from_options(o, 259),
            )
            for i, o in enumerate(options)
        ]

    def answers(batch: Any) -> list[list[int]]:
        said: dict[int, list[int]] = {batch.insert(row): [] for row in rows()}
        going = len(said)
        while going:
            for token in batch.step()[1]:
                said[token.uid].append(token.id)
                going -= token.finish_reason is not None
        return list(said.values())

    assert answers(make_batch(loaded, warm_up(loaded))) == answers(OneByOne(loaded))
