"""What changes the logits before sampling: the bias of a request, then the penalties of repetition as Ollama has them,
over the last `repeat_last_n` tokens, those of the prompt too.

A batch is adjusted as a whole, whatever the settings of its rows; what a row gets depends on nothing but itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ollmlx.runner import options as checked
from ollmlx.runner.v1 import runner_pb2 as pb


@dataclass(frozen=True)
class Adjustment:
    """Validated settings of one request."""

    # How many last tokens count; -1: all.
    last_n: int
    repeat: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    # Tokens and what is added to their logits.
    bias: tuple[tuple[int, float], ...] = ()

    @property
    def penalises(self) -> bool:
        return self.last_n != 0 and (self.repeat != 1.0 or self.presence != 0 or self.frequency != 0)


def adjustment_from_options(options: pb.Options, vocab_size: int) -> Adjustment | None:
    """What the options ask for, None where that is nothing; raises INVALID_ARGUMENT that names what is wrong."""
    checked.check_bias(options, vocab_size)
    made = Adjustment(
        checked.repeat_last_n(options),
        checked.repeat_penalty(options),
        checked.finite(options, "presence_penalty", 0.0),
        checked.finite(options, "frequency_penalty", 0.0),
        tuple(options.logit_bias.items()),
    )
    return made if made.bias or made.penalises else None


class BatchAdjuster:
    """Adjusts logits of shape (rows, vocabulary), step by step; made anew when the rows change.

    How often each token occurs in the window of its row is counted once. A step adds the token that comes and takes
    away the one that leaves, so that it costs the same however long the windows are.
    """

    def __init__(
        self, rows: Sequence[Adjustment | None], histories: Sequence[Sequence[int]], vocab: int
    ) -> None:
        """`histories`: the tokens of each row so far, without the next input."""
        wanted = [row or Adjustment(0) for row in rows]
        self._vocab = vocab
        self._bias = _bias_of(wanted, vocab)
        # None: no row penalises.
        self._counts: mx.array | None = None
        if not any(row.penalises for row in wanted):
            return
        self._last_n = [row.last_n if row.penalises else 0 for row in wanted]
        self._index = mx.arange(len(rows))[:, None]
        self._repeat = _column([row.repeat if row.penalises else 1.0 for row in wanted])
        self._presence = (
            _column([row.presence for row in wanted]) if any(r.presence for r in wanted) else None
        )
        self._frequency = (
            _column([row.frequency for row in wanted]) if any(r.frequency for r in wanted) else None
        )
        counts = np.zeros((len(rows), vocab), dtype=np.float32)
        for count, n, history in zip(counts, self._last_n, histories, strict=True):
            if n:
                window = np.array(history if n < 0 else history[-n:], dtype=np.int64)
                # Placeholders of images may be beyond the vocabulary.
                np.add.at(count, window[window < vocab], 1)
        self._counts = mx.array(counts)

    def __call__(self, inputs: mx.array, logits: mx.array, histories: Sequence[Sequence[int]]) -> mx.array:
        """The logits after `inputs`, one token for each row; `histories` are the tokens before."""
        if self._bias is not None:
            logits = logits + self._bias
        if self._counts is None:
            return logits
        self._count(inputs, histories)
        counts = self._counts
        penalised = mx.where(logits > 0, logits / self._repeat, logits * self._repeat)
        if self._presence is not None:
            penalised = penalised - self._presence
        if self._frequency is not None:
            penalised = penalised - self._frequency * counts
        return mx.where(counts > 0, penalised, logits)

    def _count(self, inputs: mx.array, histories: Sequence[Sequence[int]]) -> None:
        leaving, change = [], []
        for n, history in zip(self._last_n, histories, strict=True):
            leaves = 0 < n <= len(history) and history[-n] < self._vocab
            leaving.append(history[-n] if leaves else 0)
            change.append((1.0 if n else 0.0, -1.0 if leaves else 0.0))
        tokens = mx.concatenate(
            [inputs[:, None].astype(mx.int32), mx.array(leaving, dtype=mx.int32)[:, None]], 1
        )
        self._counts = self._counts.at[self._index, tokens].add(mx.array(change))


def _bias_of(rows: Sequence[Adjustment], vocab: int) -> mx.array | None:
    if not any(row.bias for row in rows):
        return None
    bias = np.zeros((len(rows), vocab), dtype=np.float32)
    for added, row in zip(bias, rows, strict=True):
        for token, value in row.bias:
            added[token] = value
    return mx.array(bias)


def _column(values: Sequence[float]) -> mx.array:
    return mx.array(values)[:, None]
