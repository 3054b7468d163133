"""Norms and rotary embeddings in fewer operations, for a CPU.

What MLX calls fast is one kernel on a GPU; on a CPU it is ten to twenty operations, each with its place in the graph,
its allocation and its task, some 50 us altogether whatever their size: more than half of a small model's step. The
formulas here are MLX's own, so the numbers are the same to the last bit.

A norm is compiled. MLX has a C++ compiler make a library for that, in half a second, once for a machine, since the
directory they are in persists; without a compiler it computes the function as if it were a plain one.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx

log = logging.getLogger(__name__)

# Elements of a norm up to which its operations cost more than what they compute; compiled it has one loop without SIMD.
_SMALL = 4096
# Angles kept for the layers that follow: a model may have rotary embeddings of several kinds.
_KEPT_ANGLES = 8
# Arrays of frequencies whose values are known.
_KEPT_FREQUENCIES = 1024

# MLX's own.
plain_rms_norm = mx.fast.rms_norm
plain_rope = mx.fast.rope


def warm_up() -> None:
    """Have MLX compile what it is going to need: for one row, and for several."""
    discard_broken_libraries()
    for rows in (1, 2):
        mx.eval(rms_norm(mx.ones((rows, 8)), mx.ones((8,)), 1e-5))


def discard_broken_libraries() -> None:
    """Delete compiled libraries that are not complete, by which MLX would fail for ever: a process that is killed while
    the compiler writes leaves one behind."""
    if not sys.platform.startswith("linux"):
        return
    for library in Path(tempfile.gettempdir()).glob("mlx/*/cpu/*.so"):
        if not _is_complete(library):
            log.warning("a compiled library is not complete and goes", extra={"library": str(library)})
            library.unlink(missing_ok=True)


def _is_complete(library: Path) -> bool:
    """Whether a file of the ELF format reaches to the end of its section headers, which linkers write last."""
    try:
        with library.open("rb") as file:
            header = file.read(64)
        if len(header) < 64 or header[:4] != b"\x7fELF":
            return False
        (begin,), (size, count) = (
            struct.unpack_from("<Q", header, 0x28),
            struct.unpack_from("<HH", header, 0x3A),
        )
        return library.stat().st_size >= begin + size * count
    except FileNotFoundError:
        return True


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **other: Any) -> mx.array:
    """As mx.fast.rms_norm; shapes: x (..., width), weight (width,)."""
    if x.size > _SMALL or weight is None or x.dtype != mx.float32 or weight.dtype != mx.float32 or other:
        return plain_rms_norm(x, weight, eps, **other)
    width = x.shape[-1]
    # More dimensions would be compiled into a library of their own.
    rows = x if x.ndim <= 3 else x.reshape(-1, 1, width)
    normed = _compiled_rms_norm(rows, weight, *_norm_constants(eps, width))
    return normed if rows is x else normed.reshape(x.shape)


@functools.partial(mx.compile, shapeless=True)
def _compiled_rms_norm(x: mx.array, weight: mx.array, share: mx.array, eps: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.sum(mx.square(x), axis=-1, keepdims=True) * share + eps) * weight


@functools.lru_cache(maxsize=256)
def _norm_constants(eps: float, width: int) -> tuple[mx.array, mx.array]:
    """As arrays: written into the function they would be compiled into a library of their own."""
    constants = mx.array(1 / width, dtype=mx.float32), mx.array(eps, dtype=mx.float32)
    mx.eval(constants)
    return constants


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
            given = {"traditional": traditional, "base": base, "scale": scale, "freqs": freqs, **other}
            return plain_rope(x, dims, offset=offset, **given)
        cos, sin = self._find(x.shape[2], dims, base, scale, offset, freqs, x.dtype)
        half = dims // 2
        turned, rest = (x, None) if dims == x.shape[3] else (x[..., :dims], x[..., dims:])
        swapped = mx.concatenate([x[..., half:dims], x[..., :half]], axis=-1)
        turned = turned * cos + swapped * sin
        return turned if rest is None else mx.concatenate([turned, rest], axis=-1)

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
        """Cosines, and sines as each half of a token is multiplied by them; shape (rows or 1, 1, length, dims)."""
        place = id(offset) if isinstance(offset, mx.array) else ("at", offset)
        key = (place, length, dims, base, scale, None if freqs is None else self._values(freqs), dtype)
        found = self._angles.get(key)
        if found is None:
            start = offset.reshape(-1, 1, 1, 1) if isinstance(offset, mx.array) and offset.ndim else offset
            positions = (mx.arange(length)[:, None] + start).astype(mx.float32)
            inverse = _inverse_frequencies(dims, base) if freqs is None else mx.reciprocal(freqs)
            theta = (positions if scale == 1 else positions * scale) * inverse
            cos, sin = mx.cos(theta).astype(dtype), mx.sin(theta).astype(dtype)
            found = self._angles[key] = (
                mx.concatenate([cos, cos], axis=-1),
                mx.concatenate([-sin, sin], axis=-1),
                offset,
            )
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
