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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.mlxlm import caches as kv
from ollmlx.runner.mlx.mlxlm import mixed
from ollmlx.runner.mlx.mlxlm.batch import Batch, NewRow, PrefillProgress, Token, as_prefix
from ollmlx.runner.mlx.mlxlm.caches import CacheTraits
from ollmlx.runner.mlx.mlxlm.model import LoadedModel, limit_wired_memory
from ollmlx.runner.mlx.mlxlm.onebyone import OneByOne
from ollmlx.runner.mlx.mlxlm.pace import PREFILL_CHUNK_BUSY, PREFILL_CHUNK_IDLE, Pace
from ollmlx.runner.mlx.penalties import BatchAdjuster
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.sampling import BatchSampler, Masks, accept

# Chunks leave buffers behind that the next ones, of other sizes, do not reuse; so do caches that grow.
_CLEAR_AFTER_TOKENS = 512
_CLEAR_AFTER_STEPS = 512


def make_batch(loaded: LoadedModel, traits: CacheTraits) -> Batch:
    """The kind of batch that the model's cache allows."""
    # Plain caches need not be joined: a continuous batch of one row at a time knows prefixes, too.
    plain = traits.padding_safe and not traits.positioned
    return ContinuousBatch(loaded, traits) if traits.batches or plain else OneByOne(loaded)


@dataclass(eq=False)
class _Row:
    uid: int
    spec: NewRow
    # Those whose keys and values are in the cache.
    tokens: list[int]
    # The row's own cache, until it joins the decoding ones.
    caches: list[Any] | None
    boundaries: list[int]
    # A part of its prompt was computed apart from the rest, which is then no short prompt.
    chunked: bool = False
    generated: int = 0
    # Its next input has been handed out, or is the last token of its prompt.
    told: bool = True

    @property
    def remaining(self) -> int:
        """Tokens to compute before the row can decode; the last one is the first input of decoding."""
        return len(self.spec.tokens) - 1 - len(self.tokens)

    def next_tokens(self, most: int) -> list[int]:
        begin = len(self.tokens)
        end = min([begin + min(most, self.remaining), *(b for b in self.boundaries if b > begin)])
        return self.spec.tokens[begin:end]


@dataclass(frozen=True)
class _Piece:
    """The next tokens of a prompt; none where all but the last are in its cache."""

    row: _Row
    tokens: list[int]
    # The last token of the prompt is among them: the row decodes from then on.
    last: bool = False


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
        self._waiting: list[_Row] = []
        self._decoding = _Decoding(loaded, traits)
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
        self._waiting.append(_Row(uid, row, tokens, caches, boundaries))
        return uid

    def remove(self, uid: int) -> Prefix | None:
        row = next((r for r in self._waiting if r.uid == uid), None)
        if row is None:
            return self._decoding.remove(uid)
        self._waiting.remove(row)
        return as_prefix(self._snapshot(row), row.tokens)

    def _snapshot(self, row: _Row) -> list[Any]:
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

    def _mixes(self, piece: _Piece) -> bool:
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

    def _next_prompts(self) -> list[_Row]:
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

    def _next_piece(self, row: _Row) -> _Piece | None:
        """What the next step computes of a prompt that is not computed with others."""
        whole = row.remaining <= PREFILL_CHUNK_BUSY and not row.chunked
        if self._decoding.rows and not whole and self._pace.needs_a_quiet_step:
            return None
        tokens = row.next_tokens(row.remaining if whole else self._chunk)
        last = len(tokens) == row.remaining < self._most_tokens and not row.boundaries
        if not last or (self._decoding.rows and self._mixing is None):
            return _Piece(row, tokens)
        # The first token comes out of the same pass.
        return _Piece(row, [*tokens, row.spec.tokens[-1]], last=True)

    def _compute_alone(self, piece: _Piece, wait: bool) -> None:
        if piece.tokens:
            self._model(mx.array([piece.tokens]), cache=piece.row.caches)
        # The first token of a batch comes earlier without waiting.
        done = piece.row.remaining == len(piece.tokens)
        self._compute(piece.row.caches, wait=wait or not done)

    def _account(self, piece: _Piece) -> list[PrefillProgress]:
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

    def _compute_together(self, group: list[_Row], decoding: bool) -> int:
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


@dataclass
class _Sampled:
    """What the device computes while the host does something else."""

    tokens: mx.array
    # By the position of the row.
    logprobs: dict[int, mx.array] = field(default_factory=dict)


class _Decoding:
    """Rows that decode together.

    A step launches the computation of the tokens after the known ones and then waits for the known ones, so that the
    device always has work while the host routes text. The pipeline is one token deep: a row that ends has had one token
    too many computed. Only first tokens are waited for before that, since somebody waits for them.
    """

    def __init__(self, loaded: LoadedModel, traits: CacheTraits) -> None:
        self._model = loaded.model
        # A row that is alone has plain caches.
        self._plain_alone = not traits.positioned
        self._mixing = traits.mixing
        self._eos = frozenset(loaded.tokenizer.eos_token_ids)
        self.rows: list[_Row] = []
        self._caches: list[Any] = []
        # Whether the caches are of a batch; a row that is alone has plain ones.
        self._joined = False
        self._next = _Sampled(mx.array([], dtype=mx.uint32))
        # Made for the rows that there are.
        self._sampler: BatchSampler | None = None
        self._adjuster: BatchAdjuster | None = None
        self._masks = Masks()

    def join(self, rows: list[_Row], caches: list[Any], joined: bool) -> None:
        """Take in rows whose prompts are computed but for the last token, with their caches."""
        self._join_rows(rows)
        self._join_caches(caches, joined)
        for row in rows:
            row.caches = None

    def _join_rows(self, rows: list[_Row]) -> None:
        tokens = mx.array([row.spec.tokens[-1] for row in rows], dtype=mx.uint32)
        if self.rows:
            self._next.tokens = mx.concatenate([self._next.tokens, tokens])
        else:
            self._next = _Sampled(tokens)
        self.rows += rows
        self._sampler = self._adjuster = None

    def _join_caches(self, caches: list[Any], joined: bool) -> None:
        if not self._caches:
            self._caches, self._joined = caches, joined
        else:
            if not joined and not self._joined:
                self._caches = kv.merge([self._caches, caches])
            else:
                self._caches = self._caches if self._joined else kv.merge([self._caches])
                kv.extend(self._caches, caches, joined)
            self._joined = True
        kv.make_room(self._caches, 1)

    def remove(self, uid: int) -> Prefix | None:
        index = next((i for i, row in enumerate(self.rows) if row.uid == uid), None)
        if index is None:
            return None
        prefix = as_prefix(self._extract(index), self.rows[index].tokens)
        self._keep([i for i in range(len(self.rows)) if i != index])
        return prefix

    @property
    def owes_first(self) -> bool:
        """Whether the next step gives a row its first token."""
        return any(row.generated == 0 for row in self.rows)

    def step(self, piece: _Piece | None = None) -> list[Token]:
        """One token for each row; `piece` is computed in the same pass, and its row joins with the last of a prompt."""
        if piece is not None and piece.last:
            self._join_rows([piece.row])
            piece.row.tokens += piece.tokens[:-1]
        owes_first = self.owes_first
        known = self._next
        inputs = self._launch(known.tokens, piece)
        for row, token in zip(self.rows, inputs, strict=True):
            row.tokens.append(token)
        tokens = self._hand_out(known, inputs)
        if owes_first and self.rows:
            # A first token does not wait until the one after it is under way.
            tokens += self._hand_out(self._next, self._next.tokens.tolist())
            for row in self.rows:
                row.told = True
        return tokens

    def _hand_out(self, sampled: _Sampled, inputs: Sequence[int]) -> list[Token]:
        """What was sampled for the rows, as far as it is news; rows that it ends go."""
        kept, tokens = [], []
        for index, (row, token) in enumerate(zip(self.rows, inputs, strict=True)):
            if row.told:
                row.told = False
                kept.append(index)
                continue
            row.generated += 1
            reason = prefix = None
            if token in self._eos:
                reason = "stop"
            elif row.generated >= row.spec.max_tokens:
                reason = "length"
            if reason is None:
                kept.append(index)
            else:
                prefix = as_prefix(self._extract(index), row.tokens)
            tokens.append(Token(row.uid, token, sampled.logprobs.get(index), reason, prefix))
        if len(kept) < len(self.rows):
            self._keep(kept)
        return tokens

    def _launch(self, inputs: mx.array, piece: _Piece | None) -> list[int]:
        """Start the computation of the tokens after `inputs`, and of a piece of a prompt; returns the inputs."""
        logits = self._forward(inputs, piece)
        if any(row.spec.adjustment is not None for row in self.rows):
            histories = [row.tokens for row in self.rows]
            if self._adjuster is None:
                wanted = [row.spec.adjustment for row in self.rows]
                self._adjuster = BatchAdjuster(wanted, histories, logits.shape[-1])
            logits = self._adjuster(inputs, logits, histories)
        tokens = None
        if any(row.spec.constraint is not None for row in self.rows):
            # A grammar has to see a token before it can say what may follow: it does so while the device computes.
            mx.async_eval(logits)
            tokens = inputs.tolist()
            for row, token in zip(self.rows, tokens, strict=True):
                if row.spec.constraint is not None and row.generated:
                    accept(row.spec.constraint, token)
            logits = self._masks.apply([row.spec.constraint for row in self.rows], logits)
        if self._sampler is None:
            self._sampler = BatchSampler([row.spec.sampler for row in self.rows])
        self._next = _Sampled(self._sampler(logits))
        for index, row in enumerate(self.rows):
            if row.spec.logprobs:
                values = logits[index].astype(mx.float32)
                self._next.logprobs[index] = values - mx.logsumexp(values)
        states = [] if piece is None or piece.last else [c.state for c in piece.row.caches]
        mx.async_eval(self._next.tokens, list(self._next.logprobs.values()), states)
        return inputs.tolist() if tokens is None else tokens

    def _forward(self, inputs: mx.array, piece: _Piece | None) -> mx.array:
        """Logits of all rows, shape (rows, vocabulary)."""
        kv.share_positions(self._caches)
        if piece is None:
            return self._model(inputs[:, None], cache=self._caches)[:, -1, :]
        others, prompt = len(self.rows) - piece.last, piece.row.caches
        if others:
            logits = mixed.forward(
                self._model, inputs[:others], self._caches, piece.tokens, prompt, self._mixing
            )
        else:
            logits = self._model(mx.array([piece.tokens]), cache=prompt)[0]
        if not piece.last:
            return logits[:others]
        self._join_caches(prompt, joined=not self._plain_alone)
        piece.row.caches = None
        return mx.concatenate([logits[:others], logits[-1:]]) if others else logits[-1:]

    def _extract(self, index: int) -> list[Any]:
        return [c.extract(index) for c in self._caches] if self._joined else self._caches

    def _keep(self, kept: Sequence[int]) -> None:
        """Leave only the rows at these positions."""
        if len(kept) == 1 and self._joined and self._plain_alone:
            self._caches, self._joined = self._extract(kept[0]), False
            kv.make_room(self._caches, 1)
        elif kept:
            for cache in self._caches:
                cache.filter(list(kept))
        else:
            self._caches, self._joined = [], False
        self.rows = [self.rows[i] for i in kept]
        self._sampler = self._adjuster = None
        logprobs = self._next.logprobs
        self._next = _Sampled(
            self._next.tokens[mx.array(kept, dtype=mx.uint32)] if kept else mx.array([], dtype=mx.uint32),
            {new: logprobs[old] for new, old in enumerate(kept) if old in logprobs},
        )

    def cache_bytes(self) -> int:
        return sum(c.nbytes for c in self._caches)
