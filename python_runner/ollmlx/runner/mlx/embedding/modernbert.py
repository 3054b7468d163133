"""ModernBERT: norms before each half of a layer, rotated positions, gated feed-forward, and local attention in most
layers."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ollmlx.runner.errors import unsupported
from ollmlx.runner.mlx.embedding.postnorm import ACTIVATIONS, attend, rotate, split_heads

_GLOBAL_THETA = 160_000.0
_LOCAL_THETA = 10_000.0

# Heads for other tasks: the masked language model's and the classifiers'.
_DROPPED = re.compile(r"^(head|decoder|classifier)\.")


class Embeddings(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.norm = _norm(c)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.norm(self.tok_embeddings(tokens))


class Attention(nn.Module):
    def __init__(self, c: dict[str, Any], local: bool) -> None:
        super().__init__()
        bias = c.get("attention_bias", False)
        self._heads = c["num_attention_heads"]
        self._theta = _theta(c, local)
        self.Wqkv = nn.Linear(c["hidden_size"], 3 * c["hidden_size"], bias=bias)
        self.Wo = nn.Linear(c["hidden_size"], c["hidden_size"], bias=bias)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = (split_heads(part, self._heads) for part in mx.split(self.Wqkv(x), 3, axis=-1))
        return self.Wo(attend(rotate(q, self._theta), rotate(k, self._theta), v, mask))


class FeedForward(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        activation = c.get("hidden_activation", "gelu")
        if activation not in ACTIVATIONS:
            raise unsupported(f"the activation {activation!r} is not supported")
        bias = c.get("mlp_bias", False)
        self._activation = ACTIVATIONS[activation]
        self.Wi = nn.Linear(c["hidden_size"], 2 * c["intermediate_size"], bias=bias)
        self.Wo = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        up, gate = mx.split(self.Wi(x), 2, axis=-1)
        return self.Wo(self._activation(up) * gate)


class Layer(nn.Module):
    def __init__(self, c: dict[str, Any], first: bool, local: bool) -> None:
        super().__init__()
        self.local = local
        # The first layer follows the norm of the embeddings and has none of its own.
        if not first:
            self.attn_norm = _norm(c)
        self.attn = Attention(c, local)
        self.mlp_norm = _norm(c)
        self.mlp = FeedForward(c)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        x = x + self.attn(self.attn_norm(x) if "attn_norm" in self else x, mask)
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.max_tokens = config["max_position_embeddings"]
        # Tokens seen to each side by local layers.
        self._reach = config.get("local_attention", 128) // 2
        self.embeddings = Embeddings(config)
        self.layers = [
            Layer(config, first=i == 0, local=local) for i, local in enumerate(_local_layers(config))
        ]
        self.final_norm = _norm(config)

    def __call__(self, tokens: mx.array, real: mx.array | None, types: mx.array | None = None) -> mx.array:
        """Hidden states of right-padded rows; see encoders.Encoder. Segments are told apart by a token only."""
        x = self.embeddings(tokens)
        everywhere = None if real is None else real[:, None, None, :]
        nearby = self._window(tokens.shape[1])
        if nearby is None:
            nearby = everywhere
        elif real is not None:
            # Queries of the padding see padding, lest they see nothing: what comes of that is no number, and spreads.
            nearby = nearby & (everywhere | ~real[:, None, :, None])
        for layer in self.layers:
            x = layer(x, nearby if layer.local else everywhere)
        return self.final_norm(x)

    def _window(self, length: int) -> mx.array | None:
        """Which keys a query of a local layer sees; None: all of them."""
        if length <= self._reach + 1:
            return None
        positions = mx.arange(length)
        return (mx.abs(positions[:, None] - positions[None, :]) <= self._reach)[None, None]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights of a checkpoint, without those of heads for other tasks."""
        bare = {name.removeprefix("model."): array for name, array in weights.items()}
        return {name: array for name, array in bare.items() if not _DROPPED.search(name)}


def _norm(c: dict[str, Any]) -> nn.LayerNorm:
    return nn.LayerNorm(c["hidden_size"], eps=c.get("norm_eps", 1e-5), bias=c.get("norm_bias", False))


def _local_layers(c: dict[str, Any]) -> list[bool]:
    if types := c.get("layer_types"):
        return [kind == "sliding_attention" for kind in types]
    every = c.get("global_attn_every_n_layers", 3)
    return [i % every != 0 for i in range(c["num_hidden_layers"])]


def _theta(c: dict[str, Any], local: bool) -> float:
    """Base of the rotation; older configurations name it otherwise."""
    rope = (c.get("rope_parameters") or {}).get("sliding_attention" if local else "full_attention") or {}
    if rope.get("rope_type", "default") != "default":
        raise unsupported(f"positions scaled by {rope['rope_type']!r} are not supported for modernbert")
    if local:
        return float(rope.get("rope_theta") or c.get("local_rope_theta") or _LOCAL_THETA)
    return float(rope.get("rope_theta") or c.get("global_rope_theta") or _GLOBAL_THETA)
