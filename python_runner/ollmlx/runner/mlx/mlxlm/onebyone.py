"""Rows one after another, for models whose caches cannot be joined (llama4). Caches are not reused."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.constraint import Constraint
from ollmlx.runner.mlx.mlxlm.batch import NewRow, PrefillProgress, Token
from ollmlx.runner.mlx.mlxlm.model import LoadedModel, limit_wired_memory
from ollmlx.runner.mlx.penalties import Adjustment, BatchAdjuster
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.sampling import BatchSampler, Masks, accept

Processor = Callable[[mx.array, mx.array], mx.array]

_PREFILL_CHUNK = 2048


class OneByOne:
    """Implements Batch; each step computes a chunk of the first row's prompt or one of its tokens."""

    # Of all batches, so that a row of one is never taken for one of another.
    _uids = itertools.count()

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
        self._rows: collections.deque[OneByOne._Row] = collections.deque()
        limit_wired_memory(loaded.model)

    def insert(self, row: NewRow) -> int:
        uid = next(self._uids)
        self._rows.append(self._Row(uid, row, mlx_cache.make_prompt_cache(self._model)))
        return uid

    def remove(self, uid: int) -> Prefix | None:
        self._rows = collections.deque(r for r in self._rows if r.uid != uid)
        return None

    def step(self) -> tuple[list[PrefillProgress], list[Token]]:
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
        return [], [Token(active.uid, int(token), logprobs if active.row.logprobs else None, reason)]

    def _prefill(self, active: _Row) -> PrefillProgress:
        row = active.row
        end = min(active.prefilled + _PREFILL_CHUNK, len(row.tokens) - 1)
        if end > active.prefilled:
            self._model(mx.array([row.tokens[active.prefilled : end]]), cache=active.cache)
            mx.eval([c.state for c in active.cache])
            active.prefilled = end
        if active.prefilled == len(row.tokens) - 1:
            processors = []
            if row.adjustment is not None:
                processors.append(_adjustment_processor(row.adjustment, row.tokens[:-1]))
            if row.constraint is not None:
                processors.append(_constraint_processor(row.constraint))
            active.decoder = generate_step(
                mx.array(row.tokens[-1:]),
                self._model,
                max_tokens=row.max_tokens,
                sampler=BatchSampler([row.sampler]),
                logits_processors=processors,
                prompt_cache=active.cache,
            )
        return PrefillProgress(active.uid, active.prefilled, len(row.tokens))

    @property
    def prefilling(self) -> bool:
        return bool(self._rows) and self._rows[0].decoder is None

    def cache_bytes(self) -> int:
        return sum(c.nbytes for active in self._rows for c in active.cache)

    def close(self) -> None:
        self._rows.clear()


def _adjustment_processor(adjustment: Adjustment, history: list[int]) -> Processor:
    history, adjuster, last = list(history), None, None

    def process(seen: mx.array, logits: mx.array) -> mx.array:
        nonlocal adjuster, last
        if adjuster is None:
            adjuster = BatchAdjuster([adjustment], [history], logits.shape[-1])
        else:
            # It is known by now: nothing waits for the device.
            history.append(last.item())
        last = seen[-1]
        return adjuster(seen[-1:], logits, [history])

    return process


def _constraint_processor(constraint: Constraint) -> Processor:
    # The first call is for the token after the prompt.
    fresh, masks = True, Masks()

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal fresh
        if not fresh:
            accept(constraint, tokens[-1].item())
        fresh = False
        return masks.apply([constraint], logits)

    return process
