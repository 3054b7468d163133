"""Hidden states of decoders, which mlx-lm computes: those made for embeddings, and those made for text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from ollmlx.runner.errors import RunnerError, unsupported
from ollmlx.runner.mlx import mlxlm

# Where models keep the part that ends before the output layer, outermost first.
_WRAPPERS = ("language_model",)
_INNER = ("model", "backbone", "transformer")
# How configurations name the width of the hidden states.
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "model_dim", "dim", "hidden_dim")


def make_decoder_backbone(model: Any, config: dict[str, Any]) -> DecoderBackbone | BidirectionalGemma3:
    if config.get("use_bidirectional_attention") is True and config.get("model_type") == "gemma3_text":
        return BidirectionalGemma3(model)
    return DecoderBackbone(model, config)


class DecoderBackbone:
    """A causal model as what gives hidden states; implements pooling.Backbone.

    What stands right of a token does not reach it, so padding needs no mask, and long rows can be computed in chunks.
    """

    max_tokens: int | None = None

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        self._model = model
        text = config.get("text_config") or config
        self._width = next((text[key] for key in _WIDTH_KEYS if key in text), None)
        self._architecture = config.get("model_type", "")
        # Gemma 4 says "vision" where only images are seen in both directions.
        self._causal = config.get("use_bidirectional_attention") is not True and config.get("is_causal", True)

    def hidden_states(
        self, tokens: mx.array, lengths: list[int], columns: Callable[[], int]
    ) -> Iterator[mx.array]:
        inner = self._inner()
        caches = mlxlm.make_caches(self._model)
        done = 0
        while done < tokens.shape[1]:
            chunk = tokens[:, done : done + max(columns(), 1)]
            done += chunk.shape[1]
            hidden = inner(chunk, cache=caches)
            if not isinstance(hidden, mx.array) or hidden.ndim != 3 or hidden.shape[-1] != self._width:
                raise self._unsupported()
            # The next chunk needs the caches and nothing else of this one.
            mx.eval(hidden, [c.state for c in caches])
            yield hidden

    def _inner(self) -> Any:
        """The model without its output layer: its final norm is the last thing it computes."""
        inner = self._model
        for name in _WRAPPERS:
            inner = getattr(inner, name, inner)
        found = next((getattr(inner, name) for name in _INNER if hasattr(inner, name)), None)
        if found is None or self._width is None:
            raise self._unsupported()
        if not self._causal:
            raise self._unsupported(" with attention in both directions")
        return found

    def _unsupported(self, what: str = "") -> RunnerError:
        return unsupported(f"embeddings of {self._architecture} models{what} are not supported")


class BidirectionalGemma3:
    """Gemma 3 with attention in both directions, as EmbeddingGemma; implements pooling.Backbone."""

    max_tokens: int | None = None

    def __init__(self, model: Any) -> None:
        self._inner = model.model
        # A window counts both sides.
        self._reach = self._inner.window_size // 2

    def hidden_states(
        self, tokens: mx.array, lengths: list[int], columns: Callable[[], int]
    ) -> Iterator[mx.array]:
        inner, longest = self._inner, tokens.shape[1]
        positions = mx.arange(longest)
        real = positions[None] < mx.array(lengths)[:, None]
        # Queries of the padding see padding, lest they see nothing.
        everywhere = real[:, None, None, :] | ~real[:, None, :, None]
        nearby = everywhere & (mx.abs(positions[:, None] - positions[None, :]) <= self._reach)
        x = inner.embed_tokens(tokens)
        x = x * mx.array(inner.args.hidden_size**0.5, mx.bfloat16).astype(x.dtype)
        for layer in inner.layers:
            x = layer(x, nearby if layer.self_attn.is_sliding else everywhere, None)
        yield inner.norm(x)
