"""Rows that are generated together."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.mlxlm import caches as kv
from ollmlx.runner.mlx.mlxlm.caches import CacheTraits
from ollmlx.runner.mlx.mlxlm.model import LoadedModel, limit_wired_memory
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.sampling import Processor, Sampler

# Most prompts that are prefilled together.
PREFILL_BATCH = 8
# Tokens of a prompt computed in one step, when nothing decodes and when something does: a decoding row waits
# for the whole chunk between two of its tokens.
PREFILL_CHUNK_IDLE = 2048
PREFILL_CHUNK_BUSY = 256


@dataclass(frozen=True)
class Token:
    """One sampled token of one row."""

    uid: int
    id: int
    # Log probabilities over the vocabulary, shape (vocabulary,), of the engine's thread.
    logprobs: mx.array
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
    sampler: Sampler
    processors: list[Processor]
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

    def step(self, decoding: bool) -> tuple[list[PrefillProgress], list[Token]]:
        """Decode one token for each row that can, and compute one chunk of the waiting prompts.

        `decoding` says whether any row has given a token: prompts are computed in smaller chunks then.
        """

    def cache_bytes(self) -> int:
        """Bytes of the KV caches of all rows."""

    def close(self) -> None: ...


def make_batch(loaded: LoadedModel, traits: CacheTraits, max_rows: int) -> Batch:
    """The kind of batch that the model's cache allows."""
    return _ContinuousBatch(loaded, traits, max_rows) if traits.batches else _OneByOne(loaded)


class _ContinuousBatch:
    """Continuous batching over mlx-lm's BatchGenerator."""

    def __init__(self, loaded: LoadedModel, traits: CacheTraits, max_rows: int) -> None:
        self._generator = BatchGenerator(
            loaded.model,
            stop_tokens=[[t] for t in loaded.tokenizer.eos_token_ids],
            completion_batch_size=max_rows,
            prefill_batch_size=min(PREFILL_BATCH, max_rows) if traits.padding_safe else 1,
            prefill_step_size=PREFILL_CHUNK_IDLE,
        )
        self._positioned = traits.positioned
        # Tokens of each row that came with its cache, and the rows that asked for boundaries.
        self._known: dict[int, int] = {}
        self._bounded: set[int] = set()
        # The constructor above wires the recommended maximum.
        limit_wired_memory(loaded.model)

    def insert(self, row: NewRow) -> int:
        known = len(row.prefix.tokens) if row.prefix else 0
        cuts = [known, *(b for b in row.boundaries if known < b < len(row.tokens)), len(row.tokens)]
        [uid] = self._generator.insert_segments(
            [[row.tokens[a:b] for a, b in itertools.pairwise(cuts)]],
            max_tokens=[row.max_tokens],
            caches=[self._row_caches(row)] if row.prefix else None,
            all_tokens=[list(row.prefix.tokens)] if row.prefix else None,
            samplers=[row.sampler],
            logits_processors=[row.processors],
        )
        if row.boundaries:
            self._bounded.add(uid)
        self._known[uid] = known
        return uid

    def _row_caches(self, row: NewRow) -> list[Any]:
        return kv.positioned(row.prefix.caches, row.position_shift) if self._positioned else row.prefix.caches

    def remove(self, uid: int) -> Prefix | None:
        self._bounded.discard(uid)
        self._known.pop(uid, None)
        found = self._generator.remove([uid], return_prompt_caches=True).get(uid)
        return _prefix(*found) if found else None

    def step(self, decoding: bool) -> tuple[list[PrefillProgress], list[Token]]:
        self._generator.prefill_step_size = PREFILL_CHUNK_BUSY if decoding else PREFILL_CHUNK_IDLE
        prompts, tokens = self._generator.next()
        return [self._progress(p) for p in prompts], [self._token(t) for t in tokens]

    def _progress(self, response: Any) -> PrefillProgress:
        uid, (done, total) = response.uid, response.progress
        prefix = None
        if response.end_of_segment and not response.end_of_prompt and uid in self._bounded:
            prefix = _prefix(*self._generator.extract_cache([uid])[uid])
        known = self._known[uid]
        return PrefillProgress(uid, known + done, known + total, prefix)

    def _token(self, response: Any) -> Token:
        prefix = None
        if response.finish_reason is not None:
            self._bounded.discard(response.uid)
            self._known.pop(response.uid, None)
            prefix = _prefix(response.prompt_cache, response.all_tokens)
        return Token(response.uid, response.token, response.logprobs, response.finish_reason, prefix)

    def cache_bytes(self) -> int:
        return self._generator.prompt_cache_nbytes

    def close(self) -> None:
        self._generator.close()


def _prefix(caches: list[Any], tokens: list[int]) -> Prefix | None:
    if not tokens:
        return None
    kv.settle(caches)
    return Prefix(list(tokens), caches)


class _OneByOne:
    """Rows one after another, for models whose caches cannot be joined (llama4, afm7). Caches are not reused."""

    @dataclass
    class _Row:
        uid: int
        row: NewRow
        cache: list[Any]
        prefilled: int = 0
        generated: int = 0
        # Yields (token, log probabilities), once the prompt but for its last token has been computed.
        decoder: Iterator[tuple[Any, mx.array]] | None = None

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._eos = loaded.tokenizer.eos_token_ids
        self._rows: collections.deque[_OneByOne._Row] = collections.deque()
        self._uids = itertools.count()
        limit_wired_memory(loaded.model)

    def insert(self, row: NewRow) -> int:
        uid = next(self._uids)
        self._rows.append(self._Row(uid, row, mlx_cache.make_prompt_cache(self._model)))
        return uid

    def remove(self, uid: int) -> Prefix | None:
        self._rows = collections.deque(r for r in self._rows if r.uid != uid)
        return None

    def step(self, decoding: bool) -> tuple[list[PrefillProgress], list[Token]]:
        if not self._rows:
            return [], []
        active = self._rows[0]
        if active.decoder is None:
            return [self._prefill(active)], []
        token, logprobs = next(active.decoder)
        active.generated += 1
        reason = None
        if token in self._eos:
            reason = "stop"
        elif active.generated >= active.row.max_tokens:
            reason = "length"
        if reason:
            self._rows.popleft()
        return [], [Token(active.uid, int(token), logprobs, reason)]

    def _prefill(self, active: _Row) -> PrefillProgress:
        tokens = active.row.tokens
        end = min(active.prefilled + PREFILL_CHUNK_IDLE, len(tokens) - 1)
        if end > active.prefilled:
            self._model(mx.array([tokens[active.prefilled : end]]), cache=active.cache)
            mx.eval([c.state for c in active.cache])
            active.prefilled = end
        if active.prefilled == len(tokens) - 1:
            active.decoder = generate_step(
                mx.array(tokens[-1:]),
                self._model,
                max_tokens=active.row.max_tokens,
                sampler=active.row.sampler,
                logits_processors=[_with_history(p, tokens[:-1]) for p in active.row.processors],
                prompt_cache=active.cache,
            )
        return PrefillProgress(active.uid, active.prefilled, len(tokens))

    def cache_bytes(self) -> int:
        return sum(c.nbytes for active in self._rows for c in active.cache)

    def close(self) -> None:
        self._rows.clear()


def _with_history(processor: Processor, tokens: list[int]) -> Processor:
    """generate_step shows a processor only the tokens that it was given itself; this adds the ones before."""
    history = mx.array(tokens, dtype=mx.uint32)
    return lambda seen, logits: processor(mx.concatenate([history, seen.astype(mx.uint32)]), logits)
