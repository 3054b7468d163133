"""Norms and rotary embeddings for a CPU, where MLX makes each of many small operations.

What MLX calls fast is one kernel on a GPU; on a CPU it is ten to twenty operations, each with its place in the graph,
its allocation and its task, some 55 us whatever their size. Compiled they are two to four. The formulas are MLX's own,
so the numbers are the same to the last bit. Without a C++ compiler MLX computes compiled functions as if they were
plain ones.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

# Elements of a norm up to which its operations cost more than what they compute; compiled it has one loop without SIMD.
_SMALL = 4096
# Angles kept for the layers that follow: a model may have rotary embeddings of several kinds.
_KEPT_ANGLES = 8
# Arrays of frequencies whose values are known.
_KEPT_FREQUENCIES = 1024

# MLX's own.
plain_rms_norm = mx.fast.rms_norm
plain_layer_norm = mx.fast.layer_norm
plain_rope = mx.fast.rope


def install() -> None:
    """Have models compute by the functions here. To be called on the thread that computes, when the device is a CPU."""
    mx.fast.rms_norm = rms_norm
    mx.fast.layer_norm = layer_norm
    mx.fast.rope = Rope()


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **other: Any) -> mx.array:
    """As mx.fast.rms_norm; shapes: x (..., dims), weight (dims,)."""
    if x.size > _SMALL or weight is None or other:
        return plain_rms_norm(x, weight, eps, **other)
    return _compiled_rms_norm(eps, x.shape[-1])(x, weight)


def layer_norm(
    x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, **other: Any
) -> mx.array:
    """As mx.fast.layer_norm; shapes: x (..., dims), weight and bias (dims,)."""
    if x.size > _SMALL or weight is None or other:
        return plain_layer_norm(x, weight, bias, eps, **other)
    normed = _compiled_layer_norm(eps, x.shape[-1])(x, weight)
    return normed if bias is None else normed + bias


# One function for each width, so that the mean needs no operation that finds it out.
@functools.lru_cache(maxsize=256)
def _compiled_rms_norm(eps: float, width: int) -> Callable[..., mx.array]:
    mean = _mean(width)

    def norm(x: mx.array, weight: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        normed = wide * mx.rsqrt(mean(mx.square(wide)) + eps)
        return normed.astype(x.dtype) * weight

    return mx.compile(norm, shapeless=True)


@functools.lru_cache(maxsize=256)
def _compiled_layer_norm(eps: float, width: int) -> Callable[..., mx.array]:
    mean = _mean(width)

    def norm(x: mx.array, weight: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        centred = wide - mean(wide)
        normed = centred * mx.rsqrt(mean(mx.square(centred)) + eps)
        return normed.astype(x.dtype) * weight

    return mx.compile(norm, shapeless=True)


def _mean(width: int) -> Callable[[mx.array], mx.array]:
    share = mx.array(1 / width, dtype=mx.float32)
    return lambda x: mx.sum(x, axis=-1, keepdims=True) * share


class Rope:
    """As mx.fast.rope. The layers of a model ask for the same positions one after another: the angles are computed
    once."""

    def __init__(self) -> None:
        # By what they depend on; an offset that is an array is kept too, so that its id stays its own.
        self._angles: collections.OrderedDict[tuple, tuple[mx.array, mx.array, Any]] = (
            collections.OrderedDict()
        )
        self._frequencies: dict[int, tuple[mx.array, tuple[float, ...]]] = {}

    def __call__(
        self,
        x: mx.array,
        dims: int,
        *,
        traditional: bool,
        base: float | None,
        scale: float,
        offset: int | mx.array,
        freqs: mx.array | None = None,
        **other: Any,
    ) -> mx.array:
        if traditional or other or x.ndim != 4:
            return plain_rope(
                x,
                dims,
                traditional=traditional,
                base=base,
                scale=scale,
                offset=offset,
                freqs=freqs,
                **other,
            )
        cos, sin = self._find(x.shape[2], dims, base, scale, offset, freqs, x.dtype)
        if x.shape[2] == 1 and dims == x.shape[3]:
            return _rotate_token(x, cos, sin)
        half = dims // 2
        parts = list(_rotate(x[..., :half], x[..., half:dims], cos, sin))
        if dims < x.shape[3]:
            parts.append(x[..., dims:])
        return mx.concatenate(parts, axis=-1)

    def _find(
        self,
        length: int,
        dims: int,
        base: float | None,
        scale: float,
        offset: int | mx.array,
        freqs: mx.array | None,
        dtype: mx.Dtype,
    ) -> tuple[mx.array, mx.array]:
        place = id(offset) if isinstance(offset, mx.array) else ("at", offset)
        key = (place, length, dims, base, scale, None if freqs is None else self._values(freqs), dtype)
        found = self._angles.get(key)
        if found is None:
            inverse = _inverse_frequencies(dims, base) if freqs is None else mx.reciprocal(freqs)
            start = offset if isinstance(offset, mx.array) else mx.array(offset)
            start = start.reshape(-1, 1, 1, 1) if start.ndim else start
            cos, sin = _angles(mx.arange(length)[:, None], start, mx.array(scale, dtype=mx.float32), inverse)
            found = self._angles[key] = (cos.astype(dtype), sin.astype(dtype), offset)
            if len(self._angles) > _KEPT_ANGLES:
                self._angles.popitem(last=False)
        return found[0], found[1]

    def _values(self, freqs: mx.array) -> tuple[float, ...]:
        """Layers have arrays of their own with the same values."""
        known = self._frequencies.get(id(freqs))
        if known is None:
            if len(self._frequencies) >= _KEPT_FREQUENCIES:
                self._frequencies.clear()
            known = self._frequencies[id(freqs)] = (freqs, tuple(freqs.tolist()))
        return known[1]


@functools.lru_cache(maxsize=64)
def _inverse_frequencies(dims: int, base: float) -> mx.array:
    half = dims // 2
    inverse = mx.exp(mx.arange(0, -half, -1, dtype=mx.float32) * (math.log(base) / half))
    mx.eval(inverse)
    return inverse


@functools.partial(mx.compile, shapeless=True)
def _angles(
    steps: mx.array, start: mx.array, scale: mx.array, inverse: mx.array
) -> tuple[mx.array, mx.array]:
    theta = (steps + start).astype(mx.float32) * scale * inverse
    return mx.cos(theta), mx.sin(theta)


@functools.partial(mx.compile, shapeless=True)
def _rotate(a: mx.array, b: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return a * cos - b * sin, a * sin + b * cos


# By shapes, since halves cannot be cut without: those of one token are few.
@mx.compile
def _rotate_token(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
