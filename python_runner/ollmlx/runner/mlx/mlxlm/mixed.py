"""One pass of a model over the rows that decode and a piece of a prompt, so that its weights are read once for both.

To the model each token of the piece is one more row: of length one, at its own position, like a row that decodes. Only
attention tells them apart, and gets keys and values of two kinds: those of the rows, and those of the prompt, of which
each token of the piece sees what is before it. Models know nothing of this: they carry masks, keys and values from
their cache to MLX's attention as they are. Where they do more with them, and where layers are recurrent, these parts of
layers are computed twice, once for the rows and once for the prompt, and what is around them, experts say, once.
`find_mixing` tells which way a model can be computed, if any.
"""

from __future__ import annotations

import enum
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

log = logging.getLogger(__name__)

# A pass over one token, which waits for memory, takes as long as the arithmetic of at least so many.
_TOKENS_A_STEP = 8
# Bounds of most_tokens.
_LEAST, _MOST = 16, 128

_CACHES = (mlx_cache.KVCache, mlx_cache.RotatingKVCache, mlx_cache.ArraysCache)
# The deviation that two ways to compute the same logits may have, over that of the logits: in 32 bits, and in less.
_TOLERANCE, _ROUGH_TOLERANCE = 0.001, 0.25


class Mixing(enum.Enum):
    # Only attention itself, and recurrent layers, are computed twice.
    ATTENTION = enum.auto()
    # All that is given a cache is.
    LAYERS = enum.auto()


def forward(
    model: Any, inputs: mx.array, caches: list[Any], tokens: list[int], prompt: list[Any], mixing: Mixing
) -> mx.array:
    """Logits of the rows of `caches` after `inputs`, shape (rows,), and of a prompt after each of its `tokens`, shape
    (rows + tokens, vocabulary). The states of `prompt`, caches of a row that is alone, have to be evaluated too."""
    count = len(tokens)
    if mixing is Mixing.LAYERS:
        mixed = [_MixedState(*both, inputs.size, count) for both in zip(caches, prompt, strict=True)]
    else:
        positions = _positions(caches, prompt, count)
        mixed = [_mix(*both, inputs.size, count, positions) for both in zip(caches, prompt, strict=True)]
    together = mx.concatenate([inputs, mx.array(tokens, dtype=inputs.dtype)])
    return model(together[:, None], cache=mixed)[:, -1, :]


def _positions(caches: list[Any], prompt: list[Any], count: int) -> mx.array:
    """Of the next token of each row, and of the next `count` tokens of the prompt; shape (rows + count,)."""
    both = zip(leaves(caches), leaves(prompt), strict=True)
    # Recurrent layers do not count.
    rows, row = next(b for b in both if not isinstance(b[1], mlx_cache.ArraysCache))
    # That of a row that is alone is a number.
    positions = rows.offset if isinstance(rows.offset, mx.array) else mx.array([rows.offset])
    return mx.concatenate([positions, mx.arange(row.offset, row.offset + count)])


def _mix(rows: Any, prompt: Any, rows_count: int, count: int, positions: mx.array) -> Any:
    """The caches of one layer, as the model is given them."""
    if isinstance(prompt, mlx_cache.CacheList):
        both = zip(rows.caches, prompt.caches, strict=True)
        return [_mix(*b, rows_count, count, positions) for b in both]
    if isinstance(prompt, mlx_cache.ArraysCache):
        return _MixedState(rows, prompt, rows_count, count)
    return _MixedCache(rows, prompt, rows_count, count, positions)


def leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """The caches, and of lists of caches their members."""
    for cache in caches:
        if isinstance(cache, mlx_cache.CacheList):
            yield from leaves(cache.caches)
        else:
            yield cache


def most_tokens(model: Any, vocabulary: int) -> int:
    """How many tokens of prompts may go through a pass whose logits are wanted. All of them are put through the output
    layer, which is of use for one at most: in a small model with a large vocabulary that soon costs more time than the
    pass that is saved, and in all of them memory."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    outputs = [a.nbytes for a in arrays if a.ndim == 2 and a.shape[0] == vocabulary]
    size = sum(a.nbytes for a in arrays)
    return min(max(_TOKENS_A_STEP * size // max(outputs, default=1), _LEAST), _MOST)


def find_mixing(
    model: Any,
    inputs: mx.array,
    tokens: list[int],
    caches: Callable[[], tuple[list[Any], list[Any]]],
    wanted: mx.array,
) -> Mixing | None:
    """How `forward` gives the logits that the model computes without it, if it does; `caches` makes those of rows and
    of a prompt."""
    _, prompt = caches()
    plain = list(leaves(prompt))
    recurrent = [isinstance(c, mlx_cache.ArraysCache) for c in plain]
    # Of a model that is all recurrent nothing would be computed once.
    if any(type(c) not in _CACHES for c in plain) or all(recurrent) or not _amortizes(model):
        return None
    for mixing in Mixing:
        try:
            if any(recurrent) or mixing is Mixing.LAYERS:
                _let_layers_split(model)
            rows, prompt = caches()
            check(model, forward(model, inputs, rows, tokens, prompt, mixing), wanted)
            return mixing
        except Exception as err:
            # Whatever it is: the model does without.
            reason = repr(err)
            log.info("no prompts beside what decodes", extra={"mixing": mixing.name, "reason": reason})
    return None


def check(model: Any, logits: mx.array, wanted: mx.array, rough: float = _ROUGH_TOLERANCE) -> None:
    """Raises ValueError if logits, of any shape, are others than those that are computed the usual way."""
    # Some models exclude tokens by logits that are no numbers.
    one, other = (mx.where(mx.isfinite(wanted), a, 0).astype(mx.float32) for a in (logits, wanted))
    apart = (mx.sqrt(mx.square(one - other).mean()) / other.std()).item()
    if not apart <= (rough if _is_rough(model) else _TOLERANCE):
        raise ValueError(f"logits differ by {apart:.3g} of their deviation")


def _is_rough(model: Any) -> bool:
    """Whether it is not computed in 32 bits throughout, of whatever type its logits are. GPUs may multiply 32 bits with
    the precision of 16, depending on the number of rows."""
    arrays = (array for _, array in tree_flatten(model.parameters()))
    return mx.default_device() == mx.gpu or any(a.dtype in (mx.bfloat16, mx.float16) for a in arrays)


def _amortizes(model: Any) -> bool:
    """Whether a pass over many tokens costs less than many of one: on a CPU, weights in other types than MLX multiplies
    by a BLAS are taken apart for each token anew."""
    if mx.default_device() == mx.gpu:
        return True
    return all(array.dtype == mx.float32 for _, array in tree_flatten(model.parameters()))


@dataclass(frozen=True)
class Both:
    """Keys, values or masks of one layer: those of the rows, with as many rows, and those of the prompt, with one."""

    rows: Any
    prompt: Any


class _MixedCache:
    """The KV caches of one layer, during one pass."""

    def __init__(self, rows: Any, prompt: Any, rows_count: int, count: int, positions: mx.array) -> None:
        self._rows = rows
        self._prompt = prompt
        self._rows_count = rows_count
        # Tokens of the prompt.
        self._count = count
        # All layers share it.
        self.offset = positions

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Both:
        if length != 1 or return_array:
            raise TypeError("it changes masks")
        masks = ((self._rows, 1), (self._prompt, self._count))
        return Both(*(c.make_mask(n, return_array=False, window_size=window_size) for c, n in masks))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Both, Both]:
        n = self._rows_count
        of_rows = self._rows.update_and_fetch(keys[:n], values[:n])
        of_prompt = self._prompt.update_and_fetch(_along(keys[n:]), _along(values[n:]))
        return Both(of_rows[0], of_prompt[0]), Both(of_rows[1], of_prompt[1])


class _MixedState:
    """The caches of one layer, during one pass; only for what is computed twice."""

    def __init__(self, rows: Any, prompt: Any, rows_count: int, count: int) -> None:
        self.rows = rows
        self.prompt = prompt
        self.rows_count = rows_count
        self._count = count

    def make_mask(self, length: int, **options: Any) -> Both:
        if length != 1:
            raise TypeError("it changes masks")
        return Both(self.rows.make_mask(1, **options), self.prompt.make_mask(self._count, **options))


def _let_layers_split(model: Any) -> None:
    """Let the innermost modules that are given a cache compute rows and prompt one after the other, if it is a
    _MixedState. Done to their classes, which for any other cache stay what they are."""
    for module in model.modules():
        inner = (m for m in module.modules() if m is not module)
        if _takes_cache(module) and not any(map(_takes_cache, inner)):
            kind = type(module)
            if not isinstance(kind.__call__, _Split):
                kind.__call__ = _Split(kind.__call__)


def _takes_cache(module: Any) -> bool:
    call = type(module).__call__
    return isinstance(call, _Split) or "cache" in inspect.signature(call).parameters


class _Split:
    """The __call__ of a module, which also takes what is of rows and of a prompt."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain

    def __get__(self, module: Any, owner: type | None = None) -> Callable[..., Any]:
        return self if module is None else functools.partial(self, module)

    def __call__(self, module: Any, *values: Any, **options: Any) -> Any:
        given = (*values, *options.values())
        state = next((v for v in given if isinstance(v, _MixedState)), None)
        if state is None:
            return self.plain(module, *values, **options)
        results = []
        for of in (_of_rows, _of_prompt):
            part = functools.partial(of, state.rows_count)
            results.append(self.plain(module, *map(part, values), **{k: part(v) for k, v in options.items()}))
        return _joined(*results)


def _of_rows(count: int, value: Any) -> Any:
    if isinstance(value, Both | _MixedState):
        return value.rows
    return value[:count] if isinstance(value, mx.array) else value


def _of_prompt(count: int, value: Any) -> Any:
    if isinstance(value, Both | _MixedState):
        return value.prompt
    return value[count:].swapaxes(0, 1) if isinstance(value, mx.array) else value


def _joined(rows: Any, prompt: Any) -> Any:
    if isinstance(rows, tuple):
        return tuple(_joined(*both) for both in zip(rows, prompt, strict=True))
    return mx.concatenate([rows, prompt.swapaxes(0, 1)])


def _along(array: mx.array) -> mx.array:
    """One row of many tokens, of many rows of one token, and back; shape (rows, heads, tokens, width)."""
    return array.swapaxes(0, 2)


class _Attention:
    """MLX's attention, which also takes what `_MixedCache` gives."""

    def __init__(self, plain: Callable[..., mx.array]) -> None:
        self.plain = plain

    def __call__(self, queries: mx.array, keys: Any, values: Any, **options: Any) -> mx.array:
        if not isinstance(keys, Both):
            return self.plain(queries, keys, values, **options)
        mask = options.pop("mask", None)
        if not isinstance(mask, Both):
            raise TypeError("it makes masks of its own")
        n = keys.rows.shape[0]
        rows = self.plain(queries[:n], keys.rows, values.rows, mask=mask.rows, **options)
        prompt = self.plain(_along(queries[n:]), keys.prompt, values.prompt, mask=mask.prompt, **options)
        return mx.concatenate([rows, _along(prompt)])


def install() -> None:
    """Have models compute attention so. To be called on the thread that computes."""
    if not isinstance(mx.fast.scaled_dot_product_attention, _Attention):
        mx.fast.scaled_dot_product_attention = _Attention(mx.fast.scaled_dot_product_attention)
