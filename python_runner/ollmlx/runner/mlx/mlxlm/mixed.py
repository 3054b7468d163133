"""One pass of a model over the rows that decode and a piece of a prompt, so that its weights are read once for both.

To the model each token of the piece is one more row: of length one, at its own position, like a row that decodes. Only
attention tells them apart, and gets keys and values of two kinds: those of the rows, and those of the prompt, of which
each token of the piece sees what is before it. Models know nothing of this: they carry masks, keys and values from
their cache to MLX's attention as they are. Those that do more with them cannot be computed so: `is_mixable` tells.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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

_CACHES = (mlx_cache.KVCache, mlx_cache.RotatingKVCache)
# The deviation that two ways to compute the same logits may have there, over that of the logits: in 32 bits, and in 16.
_TOLERANCE, _TOLERANCE_16 = 0.001, 0.25


def forward(
    model: Any, inputs: mx.array, caches: list[Any], tokens: list[int], prompt: list[Any]
) -> mx.array:
    """Logits of the rows of `caches` after `inputs`, shape (rows,), and of a prompt after each of its `tokens`, shape
    (rows + tokens, vocabulary). The states of `prompt`, caches of a row that is alone, have to be evaluated too."""
    offset, begin = caches[0].offset, prompt[0].offset
    # That of a row that is alone is a number.
    positions = offset if isinstance(offset, mx.array) else mx.array([offset])
    positions = mx.concatenate([positions, mx.arange(begin, begin + len(tokens))])
    mixed = [_MixedCache(*both, positions, inputs.size) for both in zip(caches, prompt, strict=True)]
    together = mx.concatenate([inputs, mx.array(tokens, dtype=inputs.dtype)])
    return model(together[:, None], cache=mixed)[:, -1, :]


def most_tokens(model: Any, vocabulary: int) -> int:
    """How many tokens of prompts may go through a pass whose logits are wanted. All of them are put through the output
    layer, which is of use for one at most: in a small model with a large vocabulary that soon costs more time than the
    pass that is saved, and in all of them memory."""
    sizes = [array.nbytes for _, array in tree_flatten(model.parameters())]
    outputs = [
        a.nbytes for _, a in tree_flatten(model.parameters()) if a.ndim == 2 and a.shape[0] == vocabulary
    ]
    return min(max(_TOKENS_A_STEP * sum(sizes) // max(outputs, default=1), _LEAST), _MOST)


def is_mixable(
    model: Any, inputs: mx.array, caches: list[Any], tokens: list[int], prompt: list[Any], wanted: mx.array
) -> bool:
    """Whether `forward` gives the logits that the model computes without it; the caches are of no use then."""
    if any(type(c) not in _CACHES for c in prompt) or not _amortizes(model):
        return False
    try:
        logits = forward(model, inputs, caches, tokens, prompt)
        mixed, expected = (a.astype(mx.float32) for a in (logits, wanted))
        apart = (mx.sqrt(mx.square(mixed - expected).mean()) / expected.std()).item()
        most = _TOLERANCE if wanted.dtype == mx.float32 else _TOLERANCE_16
        obstacle = "" if apart <= most else f"logits differ by {apart:.3g}"
    except Exception as err:
        # Whatever it is: the model does without.
        obstacle = repr(err)
    if obstacle:
        log.info("the model computes prompts apart from what decodes", extra={"reason": obstacle})
    return not obstacle


def _amortizes(model: Any) -> bool:
    """Whether a pass over many tokens costs less than many of one: on a CPU, weights in other types than MLX multiplies
    by a BLAS are taken apart for each token anew."""
    if mx.default_device() == mx.gpu:
        return True
    return all(array.dtype == mx.float32 for _, array in tree_flatten(model.parameters()))


@dataclass(frozen=True)
class _Both:
    """Keys, values or masks of one layer: those of the rows, with as many rows, and those of the prompt, with one."""

    rows: Any
    prompt: Any


class _MixedCache:
    """The caches of one layer, during one pass."""

    def __init__(self, rows: Any, prompt: Any, positions: mx.array, count: int) -> None:
        self._rows = rows
        self._prompt = prompt
        # Of the rows.
        self._count = count
        # Positions of all tokens of the pass, shape (rows + tokens of the prompt,); all layers share it.
        self.offset = positions

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> _Both:
        if length != 1 or return_array:
            raise TypeError("it changes masks")
        count = self.offset.size - self._count
        masks = ((self._rows, 1), (self._prompt, count))
        return _Both(*(c.make_mask(n, return_array=False, window_size=window_size) for c, n in masks))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[_Both, _Both]:
        n = self._count
        of_rows = self._rows.update_and_fetch(keys[:n], values[:n])
        of_prompt = self._prompt.update_and_fetch(_along(keys[n:]), _along(values[n:]))
        return _Both(of_rows[0], of_prompt[0]), _Both(of_rows[1], of_prompt[1])


def _along(array: mx.array) -> mx.array:
    """One row of many tokens, of many rows of one token, and back; shape (rows, heads, tokens, width)."""
    return array.swapaxes(0, 2)


class _Attention:
    """MLX's attention, which also takes what `_MixedCache` gives."""

    def __init__(self, plain: Callable[..., mx.array]) -> None:
        self.plain = plain

    def __call__(self, queries: mx.array, keys: Any, values: Any, **options: Any) -> mx.array:
        if not isinstance(keys, _Both):
            return self.plain(queries, keys, values, **options)
        mask = options.pop("mask", None)
        if not isinstance(mask, _Both):
            raise TypeError("it makes masks of its own")
        n = keys.rows.shape[0]
        rows = self.plain(queries[:n], keys.rows, values.rows, mask=mask.rows, **options)
        prompt = self.plain(_along(queries[n:]), keys.prompt, values.prompt, mask=mask.prompt, **options)
        return mx.concatenate([rows, _along(prompt)])


def install() -> None:
    """Have models compute attention so. To be called on the thread that computes."""
    if not isinstance(mx.fast.scaled_dot_product_attention, _Attention):
        mx.fast.scaled_dot_product_attention = _Attention(mx.fast.scaled_dot_product_attention)
