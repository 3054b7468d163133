"""Rows of token ids to one vector each: padding, hidden states of a backbone, pooling, and the stages after that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ollmlx.runner.errors import invalid
from ollmlx.runner.mlx.embedding.modules import Dense, Modules

# All but "max" are sums over the tokens of a row, each with a weight by its position and the length of the row.
_WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": lambda position, length: position == 0,
    "mean": lambda position, length: 1 / length,
    "mean_sqrt_len_tokens": lambda position, length: 1 / np.sqrt(length),
    "weightedmean": lambda position, length: (position + 1) / (length * (length + 1) / 2),
    "lasttoken": lambda position, length: position == length - 1,
}

_ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": mx.tanh,
    "ReLU": nn.relu,
    "GELU": nn.gelu,
    "SiLU": nn.silu,
    "Sigmoid": mx.sigmoid,
}


class Backbone(Protocol):
    """What gives hidden states."""

    # Longest input it can take; None: not limited by its parts.
    max_tokens: int | None

    def hidden_states(
        self, tokens: mx.array, lengths: list[int], columns: Callable[[], int]
    ) -> Iterator[mx.array]:
        """Final hidden states of right-padded rows, from left to right in chunks of `columns()` columns where the
        model allows chunks, else in one. What stands in the padding means nothing."""


def pad(rows: Sequence[Sequence[int]]) -> mx.array:
    """Rows of numbers as one array, filled up with zeros on the right."""
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return mx.array(padded)


def pool(
    backbone: Backbone, rows: Sequence[Sequence[int]], modes: Sequence[str], columns: Callable[[], int]
) -> Iterator[mx.array | None]:
    """None after each piece but the last, and then the pooled vectors. None of the rows is empty."""
    tokens, lengths = pad(rows), [len(row) for row in rows]
    pooler = Pooler(modes, lengths)
    done = 0
    for hidden in backbone.hidden_states(tokens, lengths, columns):
        pooler.add(hidden)
        done += hidden.shape[1]
        if done < tokens.shape[1]:
            yield None
    yield pooler.result()


class Pooler:
    """Takes the hidden states of right-padded rows from left to right, in one chunk or many; computes in float32."""

    def __init__(self, modes: Sequence[str], lengths: Sequence[int]) -> None:
        self._modes = modes
        self._lengths = np.array(lengths, dtype=np.float32)[:, None]
        self._seen = 0
        self._pooled: dict[str, mx.array] = {}

    def add(self, hidden: mx.array) -> None:
        """Take the next columns, of shape (rows, columns, width)."""
        positions = np.arange(self._seen, self._seen + hidden.shape[1], dtype=np.float32)[None]
        self._seen += hidden.shape[1]
        hidden = hidden.astype(mx.float32)
        # Chosen and not multiplied away: what stands in the padding may be no number.
        real = mx.array(positions < self._lengths)[..., None]
        for mode in self._modes:
            if mode == "max":
                part, join = mx.where(real, hidden, -mx.inf).max(axis=1), mx.maximum
            else:
                weights = np.broadcast_to(_WEIGHTS[mode](positions, self._lengths), real.shape[:2])
                weighted = hidden * mx.array(weights.astype(np.float32))[..., None]
                part, join = mx.where(real, weighted, 0).sum(axis=1), mx.add
            known = self._pooled.get(mode)
            self._pooled[mode] = part if known is None else join(known, part)
        mx.eval(self._pooled)

    def result(self) -> mx.array:
        """The vectors, of shape (rows, width times number of modes)."""
        return mx.concatenate([self._pooled[mode] for mode in self._modes], axis=-1)


class Stages:
    """What follows the pooling: linear layers and scaling to unit length."""

    def __init__(self, modules: Modules) -> None:
        self._stages = [_linear(s) if isinstance(s, Dense) else unit_length for s in modules.stages]

    def __call__(self, vectors: mx.array) -> mx.array:
        for stage in self._stages:
            vectors = stage(vectors)
        return vectors


def unit_length(vectors: mx.array) -> mx.array:
    """Scale to length 1; a vector of zeros stays what it is."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _linear(dense: Dense) -> Callable[[mx.array], mx.array]:
    arrays = mx.load(str(dense.directory / "model.safetensors"))
    weight, bias = arrays.get("linear.weight"), arrays.get("linear.bias")
    if weight is None or weight.ndim != 2 or (dense.bias and bias is None):
        raise invalid(f"{dense.directory.name}/model.safetensors does not hold the weights of a linear layer")
    weight = weight.astype(mx.float32)
    bias = bias.astype(mx.float32) if dense.bias else None
    mx.eval(weight, bias)
    activate = _ACTIVATIONS[dense.activation]

    def apply(vectors: mx.array) -> mx.array:
        if vectors.shape[-1] != weight.shape[1]:
            raise invalid(
                f"{dense.directory.name} takes vectors of {weight.shape[1]} dimensions, "
                f"but those before it have {vectors.shape[-1]}"
            )
        out = vectors @ weight.T
        return activate(out if bias is None else out + bias)

    return apply
