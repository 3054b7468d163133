"""Sampling as Ollama does it: penalties (`penalties`), then top_k, softmax at temperature, top_p, min_p, then the draw.

A batch is sampled as a whole, whatever the settings of its rows; logits have the shape (rows, vocabulary), token ids
(rows,).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ollmlx.runner import options as checked
from ollmlx.runner.errors import RunnerError, internal
from ollmlx.runner.mlx.constraint import Constraint
from ollmlx.runner.v1 import runner_pb2 as pb

# Below this the softmax would overflow and is an argmax anyway.
_GREEDY_TEMPERATURE = 1e-4

_UINT64 = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class SamplerSettings:
    """Validated settings of a sampler."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float

    @property
    def kind(self) -> str:
        """Rows of one kind are sampled in one pass: they have candidates in the same order, on which the meaning of a
        drawn number depends."""
        if self.temperature == 0:
            return "greedy"
        if self.top_k:
            return "few"
        return "ordered" if self.top_p < 1 else "all"


def settings_from_options(options: pb.Options, vocab_size: int) -> SamplerSettings:
    """Check the options of a request; raises INVALID_ARGUMENT that names the one that is wrong.

    A top_k beyond the vocabulary is all tokens: handed on, it would break the compiled sampler for every
    later request.
    """
    temperature = checked.temperature(options)
    top_k = options.top_k if options.HasField("top_k") else 0
    if temperature < _GREEDY_TEMPERATURE:
        return SamplerSettings(0.0, 0, 1.0, 0.0, 1.0)
    return SamplerSettings(
        temperature=temperature,
        top_k=top_k if 0 < top_k < vocab_size else 0,
        top_p=checked.share(options, "top_p", 1.0),
        min_p=checked.share(options, "min_p", 0.0),
        typical_p=checked.share(options, "typical_p", 1.0),
    )


@dataclass(frozen=True, eq=False)
class RowSampler:
    """How one row is sampled: its settings, and a number between 0 and 1 for each token."""

    settings: SamplerSettings
    draws: Iterator[float]


def make_sampler(settings: SamplerSettings, seed: int | None, drawn: int = 0) -> RowSampler:
    """The sampler of one request that has drawn `drawn` tokens already."""
    return RowSampler(settings, iter(random.random, None) if seed is None else _seeded_draws(seed, drawn))


class BatchSampler:
    """Samples one token for each row from logits of shape (rows, vocabulary), rows of unequal settings in one pass.

    What a row draws depends on its own number and its own distribution only, so a seeded request gives the same text
    whatever else is in the batch.
    """

    def __init__(self, rows: Sequence[RowSampler]) -> None:
        kinds: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault(row.settings.kind, []).append(index)
        self._parts = [
            (part, _greedy if kind == "greedy" else _DrawingRows([rows[i] for i in part]))
            for kind, part in kinds.items()
        ]
        order = [i for part, _ in self._parts for i in part]
        self._back = mx.array([order.index(i) for i in range(len(rows))]) if len(self._parts) > 1 else None

    def __call__(self, logits: mx.array) -> mx.array:
        if self._back is None:
            return self._parts[0][1](logits)
        return mx.concatenate([sample(logits[mx.array(part)]) for part, sample in self._parts])[self._back]


def _greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


class _DrawingRows:
    """Rows of one kind that draw by chance."""

    def __init__(self, rows: Sequence[RowSampler]) -> None:
        settings = [row.settings for row in rows]
        self._draws = [row.draws for row in rows]
        self._ordered = settings[0].kind != "all"
        self._most = max(s.top_k for s in settings)
        self._top_k = _column([s.top_k for s in settings]) if len({s.top_k for s in settings}) > 1 else None
        self._sharpness = _column([1 / s.temperature for s in settings])
        self._top_p = _column([s.top_p for s in settings]) if any(s.top_p < 1 for s in settings) else None
        self._min_p = _column([s.min_p for s in settings]) if any(s.min_p > 0 for s in settings) else None
        self._typical_p = (
            _column([s.typical_p for s in settings]) if any(s.typical_p < 1 for s in settings) else None
        )

    def __call__(self, logits: mx.array) -> mx.array:
        values, ids = self._candidates(logits)
        probs = mx.softmax(values.astype(mx.float32) * self._sharpness, axis=-1)
        kept = probs
        if self._typical_p is not None:
            kept = mx.where(_typical(probs, self._typical_p), kept, 0)
        if self._top_p is not None:
            # Kept: tokens before which the likelier ones do not add up to top_p yet; always the first.
            before = mx.cumsum(probs, axis=-1) - probs
            kept = mx.where((before < self._top_p) | (probs == probs.max(axis=-1, keepdims=True)), kept, 0)
        if self._min_p is not None:
            kept = mx.where(probs >= self._min_p * probs.max(axis=-1, keepdims=True), kept, 0)
        # The token in whose share of the whole the drawn number falls.
        mass = mx.cumsum(kept, axis=-1)
        drawn = mx.argmax(mass > _column([next(d) for d in self._draws]) * mass[:, -1:], axis=-1)
        return drawn if ids is None else mx.take_along_axis(ids, drawn[:, None], axis=-1).squeeze(-1)

    def _candidates(self, logits: mx.array) -> tuple[mx.array, mx.array | None]:
        """The candidates' logits, likeliest first unless all are candidates, and their ids (None: their positions)."""
        if not self._ordered:
            return logits, None
        ids = mx.argpartition(-logits, kth=self._most - 1, axis=-1)[:, : self._most] if self._most else None
        values = logits if ids is None else mx.take_along_axis(logits, ids, axis=-1)
        order = mx.argsort(-values, axis=-1)
        values = mx.take_along_axis(values, order, axis=-1)
        if self._top_k is not None:
            values = mx.where(mx.arange(self._most) < self._top_k, values, -math.inf)
        return values, order if ids is None else mx.take_along_axis(ids, order, axis=-1)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values)[:, None]


def _seeded_draws(seed: int, drawn: int) -> Iterator[float]:
    """Numbers of one seeded request, one for each token; 24 bits, which is what float32 tells apart."""
    for counter in itertools.count(drawn):
        yield (_splitmix64(seed + counter * 0x9E3779B97F4A7C15) >> 40) * 2.0**-24


def _splitmix64(value: int) -> int:
    """Spread neighbouring values over 64 bits (the finaliser of Steele, Lea and Flood's SplitMix)."""
    value &= _UINT64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _UINT64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _UINT64
    return value ^ (value >> 31)


def _typical(probs: mx.array, typical_p: mx.array) -> mx.array:
    """Mask of the locally typical set: tokens whose surprise is nearest to the entropy, adding up to
    `typical_p`."""
    surprise = -mx.log(mx.maximum(probs, 1e-30))
    entropy = (probs * surprise).sum(axis=-1, keepdims=True)
    distance = mx.abs(surprise - entropy)
    order = mx.argsort(distance, axis=-1)
    ranked = mx.take_along_axis(probs, order, axis=-1)
    kept = mx.cumsum(ranked, axis=-1) - ranked < typical_p
    return mx.take_along_axis(kept, mx.argsort(order, axis=-1), axis=-1)


# For each byte of a mask, what its bits add to eight logits: nothing for a one, minus infinity for a zero.
_MASK_BITS = mx.array([[0.0 if byte >> bit & 1 else -math.inf for bit in range(8)] for byte in range(256)])


class Masks:
    """Leaves in each row what its constraint allows next.

    It never raises: that would break the batch for the neighbours of the row; the error is left in the constraint.
    """

    def __init__(self) -> None:
        # Within a string, say, the same tokens stay allowed: then nothing has to be made anew.
        self._last: tuple[list[bytes | None], int] = ([], 0)
        self._addends = mx.array(0.0)

    def apply(self, constraints: Sequence[Constraint | None], logits: mx.array) -> mx.array:
        masks = [None if c is None else _allowed(c) for c in constraints]
        width = max((len(m) for m in masks if m is not None), default=0)
        if not width:
            return logits
        if self._last != (masks, width):
            everything = b"\xff" * width
            table = np.frombuffer(b"".join(everything if m is None else m for m in masks), dtype=np.uint8)
            bits = _MASK_BITS[mx.array(table.reshape(len(masks), width))]
            self._addends = bits.reshape(len(masks), -1)[:, : logits.shape[-1]].astype(logits.dtype)
            self._last = masks, width
        return logits + self._addends


def accept(constraint: Constraint, token: int) -> None:
    """Tell a constraint what was sampled; as Masks, it never raises."""
    try:
        constraint.accept(token)
    except Exception as err:
        constraint.error = _broken(err)


def _allowed(constraint: Constraint) -> bytes | None:
    try:
        return constraint.mask()
    except Exception as err:
        constraint.error = _broken(err)
        return None


def _broken(err: Exception) -> RunnerError:
    return internal(f"the answer could not be kept to its format: {err}")
