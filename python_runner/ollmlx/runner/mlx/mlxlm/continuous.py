"""Continuous batching: rows join and leave at any step, and prompts are computed between decode steps.

The building blocks are mlx-lm's: its models, and its caches, which can be merged, extended, filtered and extracted. Its
BatchGenerator puts these together too; this is a batch of our own because it decides by itself how much of which prompt
a step computes, computes log probabilities only where they are asked for, samples rows of unequal settings in one pass,
overlaps grammars with the device, and lets a row that is alone keep its plain cache, whose attention needs no mask.
"""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.mlxlm import caches as kv
from ollmlx.runner.mlx.mlxlm.batch import Batch, NewRow, PrefillProgress, Token, as_prefix
from ollmlx.runner.mlx.mlxlm.caches import CacheTraits
from ollmlx.runner.mlx.mlxlm.decoding import Decoding, Piece, Row
from ollmlx.runner.mlx.mlxlm.model import LoadedModel, limit_wired_memory
from ollmlx.runner.mlx.mlxlm.onebyone import OneByOne
from ollmlx.runner.mlx.mlxlm.pace import PREFILL_CHUNK_BUSY, PREFILL_CHUNK_IDLE, Pace
from ollmlx.runner.mlx.prefix_cache import Prefix

# Chunks leave buffers behind that the next ones, of other sizes, do not reuse; so do caches that grow.
_CLEAR_AFTER_TOKENS = 512
_CLEAR_AFTER_STEPS = 512


def make_batch(loaded: LoadedModel, traits: CacheTraits) -> Batch:
    """The kind of batch that the model's cache allows."""
    # Plain caches need not be joined: a continuous batch of one row at a time knows prefixes, too.
    plain = traits.padding_safe and not traits.positioned
    return ContinuousBatch(loaded, traits) if traits.batches or plain else OneByOne(loaded)


class ContinuousBatch:
    """Implements Batch."""

    # Of all batches, so that a row of one is never taken for one of another.
    _uids = itertools.count()

    def __init__(self, loaded: LoadedModel, traits: CacheTraits) -> None:
        self._model = loaded.model
        # A plain cache of mlx-lm takes positions from numbers of tokens.
        self._positioned = traits.positioned
        # Else a prompt is computed when no row decodes.
        self._joins = traits.batches
        self._joint_prefill = traits.batches and traits.padding_safe and not traits.positioned
        self._mixing = traits.mixing
        self._most_tokens = traits.most_tokens
        # Rows whose prompts are not computed yet, in order of arrival.
        self._waiting: list[Row] = []
        self._decoding = Decoding(loaded, traits)
        self._pace = Pace()
        self._turn = 0
        self._steps = 0
        # Tokens of prompts computed since buffers were given back.
        self._computed = 0
        limit_wired_memory(loaded.model)

    def insert(self, row: NewRow) -> int:
        uid = next(self._uids)
        if row.prefix is None:
            tokens, caches = [], mlx_cache.make_prompt_cache(self._model)
        else:
            # The prefix stays with its owner, whose arrays must not be written to.
            tokens, caches = list(row.prefix.tokens), copy.deepcopy(row.prefix.caches)
        if self._positioned:
            caches = kv.merge([kv.positioned(caches, row.position_shift)])
        boundaries = [b for b in row.boundaries if len(tokens) < b < len(row.tokens)]
        kv.make_room(caches, len(row.tokens) - len(tokens))
        self._waiting.append(Row(uid, row, tokens, caches, boundaries))
        return uid

    def remove(self, uid: int) -> Prefix | None:
        row = next((r for r in self._waiting if r.uid == uid), None)
        if row is None:
            return self._decoding.remove(uid)
        self._waiting.remove(row)
        return as_prefix(self._snapshot(row), row.tokens)

    def _snapshot(self, row: Row) -> list[Any]:
        """The caches of a row whose prompt is being computed, as they are now."""
        return [c.extract(0) for c in row.caches] if self._positioned else kv.copied(row.caches)

    def step(self) -> tuple[list[PrefillProgress], list[Token]]:
        started = time.perf_counter()
        decoding = bool(self._decoding.rows)
        # Somebody waits for a first token: other prompts are the next step's.
        group = self._next_prompts() if self.prefilling and not self._decoding.owes_first else []
        piece = self._next_piece(group[0]) if len(group) == 1 else None
        along = piece is not None and (piece.last or (decoding and self._mixes(piece)))
        tokens = self._decoding.step(piece if along else None) if decoding or along else []
        computed, progress = 0, []
        if piece is not None:
            if not along:
                self._compute_alone(piece, wait=decoding)
            computed, progress = len(piece.tokens), self._account(piece)
        elif len(group) > 1:
            computed = self._compute_together(group, decoding)
        if decoding:
            # A first token is waited for in the step that computes it.
            self._pace.step(time.perf_counter() - started, computed, waited_for=not along or piece.last)
        self._clear(computed)
        return progress, tokens

    def _mixes(self, piece: Piece) -> bool:
        """Whether a piece can be computed in one pass with rows that decode."""
        return self._mixing is not None and 0 < len(piece.tokens) <= self._most_tokens

    def _clear(self, computed: int) -> None:
        self._steps += 1
        self._computed += computed
        if self._steps % _CLEAR_AFTER_STEPS == 0 or self._computed >= _CLEAR_AFTER_TOKENS:
            self._computed = 0
            mx.clear_cache()

    @property
    def prefilling(self) -> bool:
        return bool(self._waiting) and (self._joins or not self._decoding.rows)

    def cache_bytes(self) -> int:
        return self._decoding.cache_bytes() + sum(c.nbytes for r in self._waiting for c in r.caches)

    def close(self) -> None:
        self._waiting.clear()
        self._decoding = None

    # ---- prompts

    def _next_prompts(self) -> list[Row]:
        """The oldest prompt and the one with the least left take turns: none waits for ever, and a short one does not
        wait for all of a long one. Short ones go together, up to some number of tokens with their padding."""
        # A longer gap for few is weighed against the first tokens of many.
        crowd = max(len(self._waiting) // max(len(self._decoding.rows), 1), 1)
        short = max(self._chunk, min(PREFILL_CHUNK_BUSY * crowd, PREFILL_CHUNK_IDLE))
        self._turn += 1
        first = self._waiting[0] if self._turn % 2 else min(self._waiting, key=lambda r: r.remaining)
        group = [first]
        if not self._joint_prefill or not 0 < first.remaining <= short or first.boundaries or first.chunked:
            return group
        longest = first.remaining
        for row in self._waiting:
            if row is first or row.boundaries or row.chunked or row.remaining == 0:
                continue
            width = max(longest, row.remaining)
            if width * (len(group) + 1) <= short:
                group.append(row)
                longest = width
        return group

    @property
    def _chunk(self) -> int:
        """Tokens of a long prompt for one step."""
        if not self._decoding.rows:
            return PREFILL_CHUNK_IDLE
        chunk = self._pace.chunk
        # Apart from the rows a piece is a pass more, for which it has to be much larger than one beside them.
        if self._mixing is not None and self._most_tokens < chunk < 2 * self._most_tokens:
            return self._most_tokens
        return chunk

    def _next_piece(self, row: Row) -> Piece | None:
        """What the next step computes of a prompt that is not computed with others."""
        whole = row.remaining <= PREFILL_CHUNK_BUSY and not row.chunked
        if self._decoding.rows and not whole and self._pace.needs_a_quiet_step:
            return None
        tokens = row.next_tokens(row.remaining if whole else self._chunk)
        last = len(tokens) == row.remaining < self._most_tokens and not row.boundaries
        if not last or (self._decoding.rows and self._mixing is None):
            return Piece(row, tokens)
        # The first token comes out of the same pass.
        return Piece(row, [*tokens, row.spec.tokens[-1]], last=True)

    def _compute_alone(self, piece: Piece, wait: bool) -> None:
        if piece.tokens:
            self._model(mx.array([piece.tokens]), cache=piece.row.caches)
        # The first token of a batch comes earlier without waiting.
        done = piece.row.remaining == len(piece.tokens)
        self._compute(piece.row.caches, wait=wait or not done)

    def _account(self, piece: Piece) -> list[PrefillProgress]:
        """What a piece of a prompt that has been computed comes to."""
        row = piece.row
        if piece.last:
            self._waiting.remove(row)
            return []
        row.tokens += piece.tokens
        row.chunked = True
        done = row.remaining == 0
        prefix = None
        if row.boundaries and row.boundaries[0] == len(row.tokens):
            row.boundaries.pop(0)
            prefix = as_prefix(self._snapshot(row), row.tokens)
        progress = []
        if prefix is not None or not done:
            progress.append(PrefillProgress(row.uid, len(row.tokens), len(row.spec.tokens), prefix))
        if done:
            self._waiting.remove(row)
            self._decoding.join([row], row.caches, joined=self._positioned)
        return progress

    def _compute_together(self, group: list[Row], decoding: bool) -> int:
        lengths = [row.remaining for row in group]
        longest = max(lengths)
        padding = [longest - n for n in lengths]
        inputs = [row.next_tokens(longest) for row in group]
        caches = kv.merge([row.caches for row in group])
        if any(padding):
            for cache in caches:
                cache.prepare(lengths=lengths, right_padding=padding)
        padded = [tokens + [0] * n for tokens, n in zip(inputs, padding, strict=True)]
        self._model(mx.array(padded), cache=caches)
        if any(padding):
            for cache in caches:
                cache.finalize()
        self._compute(caches, wait=decoding)
        for row, tokens in zip(group, inputs, strict=True):
            row.tokens += tokens
            row.caches = None
            self._waiting.remove(row)
        self._decoding.join(group, caches, joined=True)
        return longest * len(group)

    @staticmethod
    def _compute(caches: list[Any], wait: bool) -> None:
        """Waiting keeps memory and the gap between tokens bounded."""
        (mx.eval if wait else mx.async_eval)([c.state for c in caches])
