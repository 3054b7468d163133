"""Attention for a CPU: with NumPy's exponentials where there are many, and with few operations where there are few.

MLX computes exponentials one by one on a CPU without Apple's libraries, 12 ns each, and a layer needs one for every
query, key and head: with 4,000 tokens before it they are two thirds of a prompt's attention, and of a small model's
prefill. NumPy computes 16 at a time. It writes them where MLX has put the scores, so nothing is copied; what that costs
is that the layers before are waited for, which is why small attentions stay MLX's own. So do those in functions that
MLX compiles, as mlx-vlm's image encoders have them: while it looks what they compute, nothing can be waited for.
"""

from __future__ import annotations

import contextlib
from typing import Any

import mlx.core as mx
import numpy as np

# Scores of a layer from which on NumPy is faster although it has to be waited for.
_LEAST_SCORES = 24576
# Queries whose scores are computed at a time: later keys than the last of them see are left out, and scores stay small.
_QUERIES = 256
# Scores that NumPy goes through at a time, several times: they fit into a core's own cache.
_BLOCK = 65536

# MLX's own.
plain_attention = mx.fast.scaled_dot_product_attention


def scaled_dot_product_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **other: Any,
) -> mx.array:
    """As mx.fast.scaled_dot_product_attention; shapes: queries (rows, heads, length, width), keys and values (rows,
    heads of them, total, width), the result as queries with the width of values."""
    rows, heads, length, _ = queries.shape
    total = keys.shape[2]
    plain = (
        sinks is not None
        or other
        # MLX refuses other names of masks itself; and of more queries than keys some see nothing.
        or (isinstance(mask, str) and (mask != "causal" or total < length))
        or any(a.dtype != mx.float32 for a in (queries, keys, values))
    )
    if not plain and rows * heads * length * total >= _LEAST_SCORES:
        with contextlib.suppress(_Traced):
            return _attend_by_pieces(queries * scale, keys, values, mask)
    elif not plain and length == 1 and (not isinstance(mask, mx.array) or _is_of_all_heads(mask)):
        return _attend_one(queries * scale, keys, values, mask)
    return plain_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks, **other)


class _Traced(Exception):
    """The arrays are those of a function that is being compiled, and have no numbers."""


def _attend_by_pieces(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None
) -> mx.array:
    length, total = queries.shape[2], keys.shape[2]
    pieces = []
    for begin in range(0, length, _QUERIES):
        end = min(begin + _QUERIES, length)
        seen = total - length + end if isinstance(mask, str) else total
        piece = _cut(mask, begin, end) if isinstance(mask, mx.array) else mask
        pieces.append(_attend(queries[:, :, begin:end], keys[:, :, :seen], values[:, :, :seen], piece))
        if end < length:
            # Or the scores of all pieces would be kept until the last.
            mx.async_eval(pieces[-1])
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=2)


def _is_of_all_heads(mask: mx.array) -> bool:
    return mask.ndim <= 2 or (mask.ndim == 4 and mask.shape[1] == 1)


def _attend_one(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None) -> mx.array:
    """Of one query a row: half the operations of MLX's own, and half the products where two heads share keys."""
    rows, heads = queries.shape[:2]
    groups = keys.shape[1]
    scores = queries.reshape(rows, groups, heads // groups, -1) @ keys.swapaxes(-1, -2)
    if isinstance(mask, mx.array):
        scores = _masked(scores, mask)
    return (mx.softmax(scores, axis=-1, precise=True) @ values).reshape(rows, heads, 1, -1)


def _masked(scores: mx.array, mask: mx.array) -> mx.array:
    return mx.where(mask, scores, mx.finfo(mx.float32).min) if mask.dtype == mx.bool_ else scores + mask


def _cut(mask: mx.array, begin: int, end: int) -> mx.array:
    return mask[..., begin:end, :] if mask.ndim > 1 and mask.shape[-2] > 1 else mask


def _attend(queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | str | None) -> mx.array:
    rows, heads, length, _ = queries.shape
    groups, total = keys.shape[1:3]
    # The heads that share keys are one product.
    scores = queries.reshape(rows, groups, heads // groups * length, -1) @ keys.swapaxes(-1, -2)
    if isinstance(mask, mx.array):
        scores = _masked(scores.reshape(rows, heads, length, total), mask).reshape(rows, groups, -1, total)
    try:
        mx.eval(scores)
    except ValueError as err:
        raise _Traced from err
    view = np.asarray(scores)
    if mask == "causal" and length > 1:
        later = np.triu(np.ones((length, length), dtype=bool), 1)
        own = view.reshape(rows, groups, -1, length, total)[..., total - length :]
        np.copyto(own, -np.inf, where=later)
    sums = _exponentials(view.reshape(-1, total))
    del view
    weighted = (scores @ values) / mx.array(sums.reshape(rows, groups, -1, 1))
    return weighted.reshape(rows, heads, length, -1)


def _exponentials(scores: np.ndarray) -> np.ndarray:
    """Let each row be the exponentials of what it is above its highest; returns their sums. Shape (rows, total)."""
    sums = np.empty(len(scores), dtype=np.float32)
    step = max(_BLOCK // scores.shape[1], 1)
    with np.errstate(all="ignore"):
        for begin in range(0, len(scores), step):
            block = scores[begin : begin + step]
            block -= block.max(axis=1, keepdims=True)
            np.exp(block, out=block)
            block.sum(axis=1, out=sums[begin : begin + step])
    return sums
