"""Weights as a CPU multiplies them fast: in float32, not quantized, and turned where that helps.

A layer's matrix has its outputs as rows, so multiplying few rows with it goes through the matrix against the grain.
Turned it has the same shape and other strides. With the BLAS of the mlx wheel products take less than half as long
then. A tuned one gains a third in decoding, where the outputs lie whole memory pages apart, of which caches hold few.
"""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx_lm.utils as mlx_utils
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from ollmlx import blas

# Where a tuned BLAS gains: bytes from one output to the next, a multiple of these, and numbers of a matrix, at least.
_PAGE = 4096
_LEAST_NUMBERS = 1 << 20
# Rows that are turned at a time: as many float32 as a cache line holds.
_TURNED_ROWS = 16

# MLX's own.
plain_as_linear = nn.Embedding.as_linear


def widen(model: Any, wide: bool) -> None:
    """Make the weights float32, where MLX emulates the smaller types, and quantized ones plain.

    One matrix product took 7 ms in float32 and 100 ms in bfloat16; a quantized one 184 ms with float32 scales and
    1758 ms with bfloat16 ones. If they are not to be wide they stay as they are, but for the scales.
    """
    quantized = any(name.endswith(".scales") for name, _ in tree_flatten(model.parameters()))
    if wide or quantized:
        _to_float32(model)
    if wide and quantized:
        mlx_utils.dequantize_model(model)
        _to_float32(model)
    mx.eval(model.parameters())


def _to_float32(model: Any) -> None:
    small = (mx.float16, mx.bfloat16)
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype in small else a, model.parameters()))


def turn(model: Any) -> None:
    """Turn the matrices of layers where it helps. Embeddings follow when they are first multiplied with."""
    for module in model.modules():
        # Layers of experts are of mlx-lm and of mlx-vlm.
        if isinstance(module, nn.Linear) or type(module).__name__ == "SwitchLinear":
            module.weight = turned(module.weight)


def embedding_as_linear(embedding: nn.Embedding, x: mx.array) -> mx.array:
    """As nn.Embedding.as_linear. Rows of a turned matrix are slow to look up, and its products are worth it."""
    embedding.weight = turned(embedding.weight)
    return plain_as_linear(embedding, x)


def turned(weight: mx.array) -> mx.array:
    """The same matrix, or matrices, with the numbers of an input side by side, if that makes products faster; shape
    (..., outputs, inputs)."""
    if not _gains(weight):
        return weight
    result = mx.zeros((*weight.shape[:-2], weight.shape[-1], weight.shape[-2]))
    mx.eval(weight, result)
    source, target = np.asarray(weight), np.asarray(result)
    # NumPy goes along the columns of what it is given; MLX takes ten times as long.
    for begin in range(0, weight.shape[-2], _TURNED_ROWS):
        end = begin + _TURNED_ROWS
        target[..., begin:end] = source[..., begin:end, :].swapaxes(-1, -2)
    result = result.swapaxes(-1, -2)
    mx.eval(result)
    return result


def _gains(weight: mx.array) -> bool:
    if weight.dtype != mx.float32 or weight.ndim not in (2, 3):
        return False
    outputs, inputs = weight.shape[-2:]
    if not _reference_blas() and (4 * inputs % _PAGE or outputs * inputs < _LEAST_NUMBERS):
        return False
    return memoryview(weight).strides[-1] == 4 and min(outputs, inputs) > 1


@functools.cache
def _reference_blas() -> bool:
    return blas.is_reference()
