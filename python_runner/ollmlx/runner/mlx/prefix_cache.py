"""KV caches of earlier prompts and answers, by the tokens they hold, so that a request computes only what is
new.

In memory they are bounded by bytes, the least recently used go first. Where there is a directory for it, what goes is
written there, and what is there is found again after the runner has been replaced (prefix_files.py). The caches
themselves are MLX objects that the package mlxlm knows how to cut, copy and store; here they are opaque. Used on the
engine's thread only.
"""

from __future__ import annotations

import collections
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil

from ollmlx.runner.mlx.prefix_trie import PrefixTrie, as_tokens, common_prefix
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

# A shorter common prefix is not worth the copy of its cache.
_MIN_TOKENS = 8
# Each holds two arrays and more for every layer, and Metal allows 499,000 live buffers.
_MAX_ENTRIES = 512
# Tokens that a stored file must spare beyond what memory has, to be worth reading.
_MIN_FILE_GAIN = 64
# Share of the free memory that prefixes may take when the host does not say, and the most they take.
_MEMORY_SHARE = 1 / 8
_MAX_BYTES = 8 << 30
# Prefixes are written to files when nothing was to do for so long: each turn of a conversation replaces the one before,
# and what is written too early is written in vain. Then so many bytes between two looks at what there is to do.
_WRITE_AFTER_SECONDS = 30
_IDLE_WRITE_BYTES = 8 << 20
# Share of the memory for prefixes that those may take besides which wait to be written.
_LEAVING_SHARE = 1 / 4


@dataclass(frozen=True)
class Prefix:
    """The cache of a row and the tokens it holds."""

    tokens: Sequence[int]
    caches: list[Any]


class Operations(Protocol):
    """What can be done with caches."""

    def cuttable(self, caches: list[Any]) -> bool:
        """Whether caches can be shortened to any prefix; recurrent state and full windows cannot."""

    def cut(self, caches: list[Any], length: int) -> list[Any]:
        """Caches of the first `length` tokens; the given ones stay as they are."""

    def nbytes(self, caches: list[Any]) -> int: ...


class Files(Protocol):
    """Where prefixes are kept beyond the life of a runner."""

    # Shorter ones are computed again faster than they are found.
    min_tokens: int

    def __len__(self) -> int: ...

    def length(self, key: str, tokens: np.ndarray) -> int:
        """How many of `tokens` a stored prefix would spare."""

    def read(self, key: str, tokens: np.ndarray) -> tuple[np.ndarray, list[Any]] | None:
        """The prefix of `length`, with all tokens that it holds; None if it turns out to be unusable."""

    def write(self, key: str, tokens: np.ndarray, caches: list[Any], cuttable: bool) -> Iterator[int]:
        """Write a prefix in pieces, whose bytes are yielded, so that other work can go between them. Failures are
        logged: what was not written is computed again."""


@dataclass(eq=False)
class _Entry:
    key: str
    tokens: np.ndarray
    caches: list[Any]
    cuttable: bool
    nbytes: int
    used: int
    # Nothing has to be written: it is in a file, too short for one, or there are none.
    stored: bool = False


class PrefixCache:
    """Prefixes in memory, and behind them, if there are any, the files."""

    def __init__(self, max_bytes: int, operations: Operations, files: Files | None = None) -> None:
        self._max_bytes = max_bytes
        self._operations = operations
        self._files = files
        # By what the caches depend on besides the tokens.
        self._tries: dict[str, PrefixTrie[_Entry]] = collections.defaultdict(PrefixTrie)
        # The least recently used first.
        self._entries: collections.OrderedDict[int, _Entry] = collections.OrderedDict()
        self._clock = itertools.count()
        # Gone from memory, not written yet.
        self._leaving: collections.deque[_Entry] = collections.deque()
        self._writing: Iterator[int] | None = None
        self.bytes = 0
        self.hit_tokens = 0
        self.miss_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    def status(self) -> pb.PrefixCache:
        """May be asked on any thread."""
        return pb.PrefixCache(
            bytes=self.bytes,
            entries=len(self),
            hit_tokens=self.hit_tokens,
            miss_tokens=self.miss_tokens,
            files=self.files,
        )

    def find_first(
        self, adapter: str, keys: Sequence[tuple[str, int | None]], tokens: Sequence[int]
    ) -> Prefix | None:
        """What there is of `tokens` under an adapter and the first key that has any. Each key is for the first of them,
        up to a number (None: for all)."""
        for key, end in keys:
            # The last of those that are looked for is never found.
            prefix = self.find(adapter + key, tokens if end is None else tokens[: end + 1])
            if prefix is not None:
                return prefix
        return None

    def find(self, key: str, tokens: Sequence[int]) -> Prefix | None:
        """The longest prefix of `tokens` stored under `key` that leaves at least one of them to compute."""
        wanted = as_tokens(tokens[:-1])
        found = self._tries[key].longest(wanted) if key in self._tries else None
        entry, length = found or (None, 0)
        if self._files is not None and self._files.length(key, wanted) >= max(
            length + _MIN_FILE_GAIN, _MIN_TOKENS
        ):
            entry, length = self._read(key, wanted) or (entry, length)
        if entry is None or length < _MIN_TOKENS:
            self.miss_tokens += len(tokens)
            return None
        self._touch(entry)
        self.hit_tokens += length
        self.miss_tokens += len(tokens) - length
        return Prefix(list(tokens[:length]), self._operations.cut(entry.caches, length))

    def add(self, key: str, prefix: Prefix) -> None:
        """Keep a prefix under `key`, which names whatever else the caches depend on. Stored ones that it
        makes superfluous go, and the oldest go until the bytes fit."""
        tokens = as_tokens(prefix.tokens)
        if len(tokens) >= _MIN_TOKENS:
            stored = self._files is None or len(tokens) < self._files.min_tokens
            self._put(self._entry(key, tokens, prefix.caches, stored))

    def set_limit(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.shrink(max_bytes)

    def shrink(self, max_bytes: int) -> None:
        """Let the least recently used go until no more than `max_bytes` are held; later ones may fill it again."""
        while self._entries and self.bytes > max_bytes:
            self._drop_oldest()

    def clear(self) -> None:
        self._tries.clear()
        self._entries.clear()
        self._leaving.clear()
        self._writing = None
        self.bytes = 0

    # ---- files

    @property
    def files(self) -> int:
        return len(self._files) if self._files is not None else 0

    @property
    def leaving(self) -> bool:
        """Whether something waits to be written that memory has no room for."""
        return bool(self._leaving)

    @property
    def unwritten(self) -> bool:
        """Whether anything would be lost with this process."""
        return self._writing is not None or self.leaving or any(not e.stored for e in self._entries.values())

    def writing_due(self, idle_seconds: float) -> float | None:
        """Seconds until `write_idle` is to be called when nothing was to do for `idle_seconds`; None while there is
        nothing to write."""
        if not self.unwritten:
            return None
        return 0 if self.leaving else max(0, _WRITE_AFTER_SECONDS - idle_seconds)

    def write_leaving(self) -> None:
        """Write a piece of what memory has no room for, beside other work."""
        if self.leaving:
            self.write(1)

    def write_idle(self) -> None:
        """Write as much as goes between two looks at what there is to do."""
        self.write(_IDLE_WRITE_BYTES)

    def write(self, max_bytes: int) -> None:
        """Write about that many bytes of what is to be kept: first what has left memory, then what was used last."""
        written = 0
        while written < max_bytes and (self._writing is not None or self._begin_writing()):
            piece = next(self._writing, None)
            if piece is None:
                self._writing = None
            else:
                written += piece

    def write_all(self, seconds: float) -> None:
        """Write what is not stored yet, for that long at most."""
        deadline = time.monotonic() + seconds
        while self.unwritten and time.monotonic() < deadline:
            self.write(1)
        if self._writing is not None:
            self._writing.close()
            self._writing = None

    def _begin_writing(self) -> bool:
        if self._leaving:
            entry = self._leaving.popleft()
        else:
            entry = next((e for e in reversed(self._entries.values()) if not e.stored), None)
        if entry is None:
            return False
        # Tried once: a file that could not be written now is not worth a second attempt.
        entry.stored = True
        self._writing = self._files.write(entry.key, entry.tokens, entry.caches, entry.cuttable)
        return True

    def _read(self, key: str, wanted: np.ndarray) -> tuple[_Entry, int] | None:
        read = self._files.read(key, wanted)
        if read is None:
            return None
        entry = self._entry(key, *read, stored=True)
        self._put(entry)
        return entry, common_prefix(entry.tokens, wanted)

    # ---- memory

    def _entry(self, key: str, tokens: np.ndarray, caches: list[Any], stored: bool) -> _Entry:
        operations = self._operations
        return _Entry(
            key,
            tokens,
            caches,
            operations.cuttable(caches),
            operations.nbytes(caches),
            next(self._clock),
            stored,
        )

    def _put(self, entry: _Entry) -> None:
        if entry.nbytes > self._max_bytes:
            self._leave(entry)
            return
        trie = self._tries[entry.key]
        covering = trie.covering(entry.tokens)
        if covering is not None:
            self._touch(covering)
            return
        if entry.cuttable:
            for shorter in trie.shorter(entry.tokens):
                self._remove(shorter)
        trie.add(entry)
        self._entries[entry.used] = entry
        self.bytes += entry.nbytes
        self.shrink(self._max_bytes)
        while len(self._entries) > _MAX_ENTRIES:
            self._drop_oldest()

    def _touch(self, entry: _Entry) -> None:
        if self._entries.pop(entry.used, None) is not None:
            entry.used = next(self._clock)
            self._entries[entry.used] = entry

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.used]
        self._tries[entry.key].remove(entry)
        self.bytes -= entry.nbytes

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._entries.values()))
        self._remove(oldest)
        if self._tries[oldest.key].empty:
            # Keys are many: each set of images has its own.
            del self._tries[oldest.key]
        self._leave(oldest)

    def _leave(self, entry: _Entry) -> None:
        """Memory has no room for an entry: it waits for its file, as far as there is room for waiting."""
        if entry.stored:
            return
        self._leaving.append(entry)
        while (
            len(self._leaving) > 1 and sum(e.nbytes for e in self._leaving) > self._max_bytes * _LEAVING_SHARE
        ):
            lost = self._leaving.popleft()
            log.warning("a prefix cache went before it was written", extra={"tokens": len(lost.tokens)})


def default_bytes() -> int:
    """What prefixes may take on this machine now."""
    return min(int(psutil.virtual_memory().available * _MEMORY_SHARE), _MAX_BYTES)
