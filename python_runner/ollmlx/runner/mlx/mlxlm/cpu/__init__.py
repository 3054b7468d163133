"""How models compute on a CPU, where MLX's own way is slow: weights in types and layouts that it multiplies fast, and
other code for what MLX has kernels for on a GPU only."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from ollmlx.runner.mlx.mlxlm.cpu.attention import scaled_dot_product_attention
from ollmlx.runner.mlx.mlxlm.cpu.operations import Rope, rms_norm, warm_up
from ollmlx.runner.mlx.mlxlm.cpu.weights import embedding_as_linear, turn, widen

__all__ = ["install", "turn", "warm_up", "widen"]


def install() -> None:
    """Have models compute by what is here. To be called on the thread that computes, when the device is a CPU."""
    mx.fast.rms_norm = rms_norm
    mx.fast.rope = Rope()
    mx.fast.scaled_dot_product_attention = scaled_dot_product_attention
    nn.Embedding.as_linear = embedding_as_linear
