"""KV caches of earlier prompts and answers, by the tokens they hold, so that a request computes only what is
new.

The caches themselves are MLX objects that mlxlm.py knows how to cut and copy; here they are opaque. Used on
the engine's thread only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A shorter common prefix is not worth the copy of its cache.
_MIN_TOKENS = 8
# Lookups compare with every entry, so their number is bounded beside their bytes.
_MAX_ENTRIES = 256


@dataclass(frozen=True)
class Prefix:
    """The cache of a row and the tokens it holds."""

    tokens: Sequence[int]
    caches: list[Any]


@dataclass(eq=False)
class _Entry:
    key: str
    tokens: np.ndarray
    caches: list[Any]
    # The cache can be shortened to any prefix of its tokens; recurrent state and full windows cannot.
    cuttable: bool
    nbytes: int
    used: int


class PrefixCache:
    """A bounded set of prefixes; the least recently used go first.

    `cuttable(caches)` says whether caches can be shortened, `cut(caches, n)` returns caches of the first n
    tokens and leaves the given ones alone, `nbytes(caches)` is their size in bytes.
    """

    def __init__(
        self,
        max_bytes: int,
        cuttable: Callable[[list[Any]], bool],
        cut: Callable[[list[Any], int], list[Any]],
        nbytes: Callable[[list[Any]], int],
    ) -> None:
        self._max_bytes = max_bytes
        self._cuttable = cuttable
        self._cut = cut
        self._nbytes = nbytes
        self._entries: list[_Entry] = []
        self._clock = itertools.count()
        self.bytes = 0
        self.hit_tokens = 0
        self.miss_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, tokens: Sequence[int]) -> Prefix | None:
        """The longest prefix of `tokens` stored under `key` that leaves at least one of them to compute."""
        wanted = np.asarray(tokens[:-1], dtype=np.int64)
        best, length = None, _MIN_TOKENS - 1
        for entry in self._entries:
            if entry.key != key:
                continue
            common = _common_prefix(entry.tokens, wanted)
            if common > length and (entry.cuttable or common == len(entry.tokens)):
                best, length = entry, common
        if best is None:
            self.miss_tokens += len(tokens)
            return None
        best.used = next(self._clock)
        self.hit_tokens += length
        self.miss_tokens += len(tokens) - length
        return Prefix(list(tokens[:length]), self._cut(best.caches, length))

    def add(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix under `key`, which names whatever else the caches depend on. Stored ones that it
        makes superfluous go, and the oldest go until the bytes fit."""
        tokens = np.asarray(prefix.tokens, dtype=np.int64)
        if len(tokens) < _MIN_TOKENS:
            return
        nbytes = self._nbytes(prefix.caches)
        if nbytes > self._max_bytes:
            return
        cuttable = self._cuttable(prefix.caches)
        for entry in [e for e in self._entries if e.key == key]:
            common = _common_prefix(entry.tokens, tokens)
            if common == len(tokens) and (entry.cuttable or len(entry.tokens) == common):
                entry.used = next(self._clock)
                return
            if common == len(entry.tokens) and cuttable:
                self._remove(entry)
        self._entries.append(_Entry(key, tokens, prefix.caches, cuttable, nbytes, next(self._clock)))
        self.bytes += nbytes
        while self.bytes > self._max_bytes or len(self._entries) > _MAX_ENTRIES:
            self._remove(min(self._entries, key=lambda e: e.used))

    def set_limit(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.shrink(max_bytes)

    def shrink(self, max_bytes: int) -> None:
        """Let the least recently used go until no more than `max_bytes` are held; later ones may fill it again."""
        while self._entries and self.bytes > max_bytes:
            self._remove(min(self._entries, key=lambda e: e.used))

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self.bytes -= entry.nbytes


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
