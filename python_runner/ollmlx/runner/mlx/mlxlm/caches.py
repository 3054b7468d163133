"""KV caches: what a model's allow, and how a stored one is shortened and sized."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx.mlxlm import mixed
from ollmlx.runner.mlx.mlxlm.model import LoadedModel

log = logging.getLogger(__name__)


class PositionedKVCache(mlx_cache.KVCache):
    """The cache of a row whose next token need not stand at the position that is its number in the cache.

    Models that see count the tokens of an image as fewer positions than tokens. A batch keeps where its rows write
    apart from where they stand, so the difference needs to be told once, when a row joins.
    """

    shift = 0

    @classmethod
    def merge(cls, caches: Sequence[mlx_cache.KVCache]) -> mlx_cache.BatchKVCache:
        batch = mlx_cache.BatchKVCache.merge(caches)
        batch.offset = batch.offset + mx.array([getattr(c, "shift", 0) for c in caches])
        return batch


def positioned(caches: list[Any], shift: int) -> list[Any]:
    """Caches that go on at positions shifted by `shift`, sharing the arrays of `caches`, which stay as they are."""
    moved = []
    for cache in caches:
        if isinstance(cache, mlx_cache.KVCache):
            cache, plain = PositionedKVCache(), cache
            cache.state = plain.state
            cache.shift = shift
        moved.append(cache)
    return moved


# Cache classes whose prompts may be prefilled together though their lengths differ. The padding of a joint
# prefill reaches the state of recurrent layers (wrong text was measured for mamba, rwkv7 and nemotron_h), so
# others go one by one.
_PADDING_SAFE_CACHES = (mlx_cache.KVCache, mlx_cache.RotatingKVCache, PositionedKVCache)

# Tokens between the growths of one layer and the next, and layers until they begin again.
_GROWTH_SPREAD = 8
_GROWTH_STEPS = 16

# Model types whose code is wrong for a batch although their caches can be joined: afm7's layers that reuse keys take
# their position from the length of the padded cache, the same for all rows.
_UNBATCHABLE_TYPES = frozenset({"afm7"})


# How far logits of a row may be in less than 32 bits, in their standard deviations, from those that it has when it is
# alone. More than rounding is ever known to do: without rows that are joined, a model serves one request at a time.
_ROWS_ROUGH_TOLERANCE = 0.5


@dataclass(frozen=True)
class CacheTraits:
    """What a model and the classes of its cache allow."""

    # Rows can be joined into a batch.
    batches: bool
    # Prompts of different lengths may be prefilled together.
    padding_safe: bool
    # Bytes per token of one row; 0 when they are not proportional.
    bytes_per_token: int
    # A stored cache can always be shortened; else boundaries have to be kept during prefill.
    cuttable: bool
    # Positions of tokens are not their numbers: rows join with PositionedKVCache.
    positioned: bool = False
    # How prompts can be computed in one pass with rows that decode, if they can.
    mixing: mixed.Mixing | None = None
    # Tokens of prompts in one pass whose logits are wanted.
    most_tokens: int = 0


def make_caches(model: Any) -> list[Any]:
    """Empty caches for rows that are all fed alike."""
    return mlx_cache.make_prompt_cache(model)


def warm_up(loaded: LoadedModel) -> CacheTraits:
    """Compute a few tokens, which compiles the first graphs, and look at the cache they made."""
    caches = make_caches(loaded.model)
    logits = loaded.model(mx.array([[0]]), cache=caches)
    mx.eval(logits, [c.state for c in caches])
    plain = list(mixed.leaves(caches))
    kv = [c for c in plain if isinstance(c, mlx_cache.KVCache) and c.keys is not None]
    vocabulary = logits.shape[-1]
    batches, mixing = False, None
    if loaded.config.get("model_type") not in _UNBATCHABLE_TYPES and all(hasattr(c, "merge") for c in caches):
        batches, mixing = _try_rows(loaded.model, caches, vocabulary)
    return CacheTraits(
        batches=batches,
        padding_safe=all(type(c) in _PADDING_SAFE_CACHES for c in plain),
        bytes_per_token=sum((c.keys.nbytes + c.values.nbytes) // c.keys.shape[2] for c in kv),
        cuttable=all(type(c) in (mlx_cache.KVCache, PositionedKVCache) for c in plain),
        positioned=any(type(c) is PositionedKVCache for c in plain),
        mixing=mixing,
        most_tokens=mixed.most_tokens(loaded.model, vocabulary),
    )


def _try_rows(model: Any, caches: list[Any], vocabulary: int) -> tuple[bool, mixed.Mixing | None]:
    """Whether rows of different lengths can decode together, and be taken apart again, and how prompts can be
    computed in the same pass; tried with a row of one token, of which `caches` are, and one of three. Some models take
    positions or masks as only a single row has them, and fail with several, or give other text; others leave caches
    empty."""
    tokens = [1 % vocabulary, 2 % vocabulary]
    try:
        longer = copy.deepcopy(caches)
        logits = model(mx.array([tokens]), cache=longer)[0]
        mx.eval(logits, [c.state for c in longer])
        inputs, rows = mx.array(tokens), merge([caches, longer])
        together = model(inputs[:, None], cache=rows)[:, -1, :]
        mx.eval(together, [c.extract(0).state for c in rows])
        # The shorter row has become what the other was after its first token.
        mixed.check(model, together[0], logits[0], _ROWS_ROUGH_TOLERANCE)
    except Exception as err:
        log.warning("the model computes one row at a time", extra={"reason": repr(err)})
        return False, None

    def fresh() -> tuple[list[Any], list[Any]]:
        return merge([caches, longer]), copy.deepcopy(caches)

    return True, mixed.find_mixing(model, inputs, tokens, fresh, mx.concatenate([together, logits]))


def merge(rows: list[list[Any]]) -> list[Any]:
    """Caches of rows, put together layer by layer."""
    return [layer[0].merge(list(layer)) for layer in zip(*rows, strict=True)]


def cuttable(caches: list[Any]) -> bool:
    """Whether `caches` can be shortened to any prefix: not recurrent state, and not a window that has wrapped."""
    return all(c.is_trimmable() for c in caches)


def cut(caches: list[Any], length: int) -> list[Any]:
    """Caches of the first `length` tokens, sharing the arrays of `caches`, which stay as they are."""
    shorter = (
        copy.deepcopy(caches)
        if any(isinstance(c, mlx_cache.CacheList) for c in caches)
        else [copy.copy(c) for c in caches]
    )
    for cache in shorter:
        excess = cache.size() - length if cache.is_trimmable() else 0
        if excess > 0:
            cache.trim(excess)
    return shorter


class CacheOperations:
    """What can be done with stored caches; see prefix_cache.Operations."""

    cuttable = staticmethod(cuttable)
    cut = staticmethod(cut)
    nbytes = staticmethod(lambda caches: sum(c.nbytes for c in caches))


def make_room(caches: list[Any], tokens: int) -> None:
    """Let caches take room for so many more tokens when they next grow, in whole steps of mlx-lm. A cache that grows is
    copied: a long prompt would let it do so many times, and all layers at once are a decode step of three times the
    length, so each has a little more than the one before."""
    for layer, cache in enumerate(mixed.leaves(caches)):
        if type(cache) in (mlx_cache.KVCache, mlx_cache.BatchKVCache):
            step = type(cache).step
            cache.step = -(-tokens // step) * step + _GROWTH_SPREAD * (layer % _GROWTH_STEPS)


def copied(caches: list[Any]) -> list[Any]:
    """Caches as they are now, of ones that go on; without the room that these have taken."""
    copies = copy.deepcopy(caches)
    for cache in mixed.leaves(copies):
        if type(cache) is mlx_cache.KVCache and cache.keys is not None:
            cache.step = mlx_cache.KVCache.step
            cache.keys, cache.values = (mx.contiguous(a) for a in cache.keys_and_values())
    return copies


def extend(caches: list[Any], others: list[Any], joined: bool) -> None:
    """Let rows join those of a batch, layer by layer: those of another batch, or one that has been alone."""
    for mine, other in zip(caches, others, strict=True):
        if type(mine) is mlx_cache.BatchKVCache and not mine.empty() and _is_plain(other):
            _extend(mine, other)
        else:
            mine.extend(other if joined else other.merge([other]))


def _is_plain(cache: Any) -> bool:
    return type(cache) in (mlx_cache.KVCache, mlx_cache.BatchKVCache) and not cache.empty()


def _extend(mine: mlx_cache.BatchKVCache, other: mlx_cache.KVCache | mlx_cache.BatchKVCache) -> None:
    """As BatchKVCache.extend, which pads both sides, puts them together, and has all copied once more with the next
    token, for want of room. Here each is copied once: where a long row joins, others wait for that."""
    used, rows = max(mine.size(), other.size()), mine.keys.shape[0]
    alone = type(other) is mlx_cache.KVCache
    for name in ("keys", "values"):
        first, second = getattr(mine, name), getattr(other, name)
        _, heads, _, width = first.shape
        both = mx.zeros((rows + second.shape[0], heads, used + mine.step, width), dtype=first.dtype)
        # The ends of rows are side by side.
        both[:rows, :, used - mine.size() : used] = first[..., : mine.size(), :]
        both[rows:, :, used - other.size() : used] = second[..., : other.size(), :]
        setattr(mine, name, both)
    padding = mx.array([0]) if alone else other.left_padding
    mine.left_padding = mx.concatenate(
        [mine.left_padding + (used - mine.size()), padding + (used - other.size())]
    )
    mine.offset = mx.concatenate([mine.offset, mx.array([other.offset]) if alone else other.offset])
    mine._idx = used


def share_positions(caches: list[Any]) -> None:
    """Let the layers of a batch have one array of positions: each counts them for itself, with equal results. What
    depends on it is then computed once for a step and not for each layer."""
    if all(type(c) is mlx_cache.BatchKVCache for c in caches):
        for cache in caches[1:]:
            cache.offset = caches[0].offset


def settle(caches: list[Any]) -> None:
    """Copy what is still a view of a batch's arrays, so that keeping these does not keep the batch."""
    for cache in mixed.leaves(caches):
        # mlx-vlm has a class of its own for this.
        if type(cache).__name__ == mlx_cache.ArraysCache.__name__:
            cache.cache = [a if a is None else mx.contiguous(a) for a in cache.cache]
    mx.eval([c.state for c in caches])
