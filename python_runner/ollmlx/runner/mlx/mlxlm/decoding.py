"""The rows of a batch that decode: one token for each at a time, and with it perhaps a piece of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ollmlx.runner.mlx.mlxlm import caches as kv
from ollmlx.runner.mlx.mlxlm import mixed
from ollmlx.runner.mlx.mlxlm.batch import NewRow, Token, as_prefix
from ollmlx.runner.mlx.mlxlm.caches import CacheTraits
from ollmlx.runner.mlx.mlxlm.model import LoadedModel
from ollmlx.runner.mlx.penalties import BatchAdjuster
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.sampling import BatchSampler, Masks, accept


@dataclass(eq=False)
class Row:
    """A request in a batch: first its prompt is computed, then it decodes."""

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
class Piece:
    """The next tokens of a prompt; none where all but the last are in its cache."""

    row: Row
    tokens: list[int]
    # The last token of the prompt is among them: the row decodes from then on.
    last: bool = False


@dataclass
class _Sampled:
    """What the device computes while the host does something else."""

    tokens: mx.array
    # By the position of the row.
    logprobs: dict[int, mx.array] = field(default_factory=dict)


class Decoding:
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
        self.rows: list[Row] = []
        self._caches: list[Any] = []
        # Whether the caches are of a batch; a row that is alone has plain ones.
        self._joined = False
        self._next = _Sampled(mx.array([], dtype=mx.uint32))
        # Made for the rows that there are.
        self._sampler: BatchSampler | None = None
        self._adjuster: BatchAdjuster | None = None
        self._masks = Masks()

    def join(self, rows: list[Row], caches: list[Any], joined: bool) -> None:
        """Take in rows whose prompts are computed but for the last token, with their caches."""
        self._join_rows(rows)
        self._join_caches(caches, joined)
        for row in rows:
            row.caches = None

    def _join_rows(self, rows: list[Row]) -> None:
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

    def step(self, piece: Piece | None = None) -> list[Token]:
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

    def _launch(self, inputs: mx.array, piece: Piece | None) -> list[int]:
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

    def _forward(self, inputs: mx.array, piece: Piece | None) -> mx.array:
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
