"""Encoders by the model_type of their configuration, and the reading of their weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ollmlx.runner.errors import invalid

_HERE = __name__.rpartition(".")[0]


class Encoder(Protocol):
    """A model that sees its whole input at once; a module of MLX, made from config.json."""

    @property
    def max_tokens(self) -> int:
        """Longest input, special tokens included."""

    def __call__(self, tokens: mx.array, real: mx.array | None, types: mx.array | None = None) -> mx.array:
        """Final hidden states of right-padded rows of token ids, of shape (rows, tokens, width); `real` is true
        where there is no padding, None where nowhere is any. `types` is 1 in second segments, for encoders that tell
        segments apart; None: there are none."""

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """The weights of a Hugging Face checkpoint under the module's own names."""


def make_encoder(module: str, config: dict[str, Any], path: Path) -> Any:
    """An Encoder with its weights, not yet computed."""
    return load_encoder_weights(make_encoder_module(module, config), config, path)


def make_encoder_module(module: str, config: dict[str, Any]) -> Any:
    """An Encoder without its weights."""
    return importlib.import_module(f"{_HERE}.{module}").Model(config)


def load_encoder_weights(model: Any, config: dict[str, Any], path: Path) -> Any:
    """Give `model` the weights in `path`, after its own `sanitize`; they are not computed yet."""
    weights = {}
    for file in sorted(path.glob("model*.safetensors")):
        weights.update(mx.load(str(file)))
    if not weights:
        raise invalid("there are no weights (model*.safetensors)")
    weights = model.sanitize(weights)
    _quantize(model, config, weights)
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    return model


def _quantize(model: nn.Module, config: dict[str, Any], weights: dict[str, mx.array]) -> None:
    """Make room for the packed weights of a checkpoint that MLX quantized."""
    quantization = config.get("quantization")
    if not quantization:
        return
    nn.quantize(
        model,
        group_size=quantization["group_size"],
        bits=quantization["bits"],
        mode=quantization.get("mode", "affine"),
        class_predicate=lambda name, module: hasattr(module, "to_quantized") and f"{name}.scales" in weights,
    )


class EncoderBackbone:
    """An encoder as what gives hidden states; implements pooling.Backbone."""

    def __init__(self, encoder: Encoder, types: mx.array | None = None) -> None:
        """`types` are those of the rows that it will be given, where segments are told apart."""
        self._encoder = encoder
        self._types = types
        self.max_tokens: int | None = encoder.max_tokens

    def hidden_states(self, tokens: mx.array, lengths: list[int], columns: Callable[[], int]) -> Any:
        """All columns at once: each depends on all others."""
        longest = tokens.shape[1]
        real = None
        if min(lengths) < longest:
            real = mx.arange(longest)[None] < mx.array(lengths)[:, None]
        yield self._encoder(tokens, real, self._types)
