"""Rows that are generated together: what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from ollmlx.runner.mlx.constraint import Constraint
from ollmlx.runner.mlx.mlxlm import caches as kv
from ollmlx.runner.mlx.penalties import Adjustment
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.sampling import RowSampler


@dataclass(frozen=True)
class Token:
    """One sampled token of one row."""

    uid: int
    id: int
    # Log probabilities over the vocabulary, shape (vocabulary,), of the engine's thread; None where not asked for.
    logprobs: mx.array | None
    # None while the row goes on, "stop" on an end-of-sequence token, "length" at max_tokens.
    finish_reason: str | None
    # With a finish_reason: the row's cache, if it can be used again.
    prefix: Prefix | None = None


@dataclass(frozen=True)
class PrefillProgress:
    """One chunk of one prompt was computed, counted in tokens."""

    uid: int
    done: int
    total: int
    # The row's cache, where it was asked for a boundary here.
    prefix: Prefix | None = None


@dataclass(frozen=True)
class NewRow:
    """What a row continues and how."""

    # At least one token.
    tokens: list[int]
    max_tokens: int
    sampler: RowSampler
    adjustment: Adjustment | None = None
    constraint: Constraint | None = None
    # Whether tokens come with log probabilities.
    logprobs: bool = False
    # Cache of the first tokens, at least one less than there are.
    prefix: Prefix | None = None
    # Numbers of tokens at which the row's cache is to be handed out during prefill, ascending.
    boundaries: Sequence[int] = ()
    # What is added to the number of a token after the prefix to get its position; not 0 only after images.
    position_shift: int = 0


class Batch(Protocol):
    """Rows that are generated together. A row joins by `insert` and leaves when it finishes or by `remove`.

    An exception out of `step` leaves the batch unusable; it must be dropped and its rows put into a new one.
    """

    def insert(self, row: NewRow) -> int:
        """Add a row; returns its uid."""

    def remove(self, uid: int) -> Prefix | None:
        """Take a row out, wherever it is; returns its cache, if it can be used again."""

    def step(self) -> tuple[list[PrefillProgress], list[Token]]:
        """Decode one token for each row that can, and compute one chunk of the waiting prompts."""

    @property
    def prefilling(self) -> bool:
        """Whether the next step computes a part of a prompt."""

    def cache_bytes(self) -> int:
        """Bytes of the KV caches of all rows."""

    def close(self) -> None: ...


def as_prefix(caches: list[Any], tokens: list[int]) -> Prefix | None:
    """Caches that are handed out: computed, and no longer a view of a batch's arrays."""
    if not tokens:
        return None
    kv.settle(caches)
    return Prefix(list(tokens), caches)
