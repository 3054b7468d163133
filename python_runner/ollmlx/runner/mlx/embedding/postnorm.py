"""Transformer encoders with a norm after each half of a layer: BERT and its descendants.

One module computes all of them; they differ in how they know positions (a learned table, a bias by distance, rotation),
in their feed-forward half (plain or gated) and in the names of their weights. `config_of` and `rename` bring each
family's configuration and names to the ones used here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ollmlx.runner.errors import unsupported

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_fast": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
}

# Positions of MPNet and RoBERTa begin after the id of the padding token, which is 1 where nothing else is said.
_ROBERTA_PAD = 1
# MPNet's bias by distance: distances beyond this one share a bucket.
_MAX_DISTANCE = 128


@dataclass(frozen=True)
class Config:
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    norm_eps: float
    activation: str = "gelu"
    # Longest input in tokens.
    max_tokens: int = 512
    # Rows of the table of learned positions and the first one used; 0 rows: none.
    positions: int = 0
    first_position: int = 0
    # Rows of the table of token types; 0: none.
    token_types: int = 0
    # Buckets of the bias by distance; 0: none.
    distance_buckets: int = 0
    # Base of the rotation of queries and keys; None: none.
    rope_base: float | None = None
    # Feed-forward with a gate.
    gated: bool = False
    # Linear layers of the attention and of the feed-forward half have a bias.
    attention_bias: bool = True
    mlp_bias: bool = True


def config_of(c: dict[str, Any]) -> Config:
    """From config.json, of any of the families."""
    family = c["model_type"]
    if family == "distilbert":
        return Config(
            vocab_size=c["vocab_size"],
            hidden_size=c["dim"],
            layers=c["n_layers"],
            heads=c["n_heads"],
            intermediate_size=c["hidden_dim"],
            norm_eps=1e-12,
            activation=c.get("activation", "gelu"),
            max_tokens=c["max_position_embeddings"],
            positions=c["max_position_embeddings"],
        )
    if family == "nomic_bert":
        return _nomic_config(c)
    if c.get("position_embedding_type", "absolute") != "absolute":
        raise unsupported(f"position embeddings of type {c['position_embedding_type']!r} are not supported")
    first = 0
    if family == "mpnet":
        first = _ROBERTA_PAD + 1
    elif family != "bert":
        first = _pad_id(c) + 1
    return Config(
        vocab_size=c["vocab_size"],
        hidden_size=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        intermediate_size=c["intermediate_size"],
        norm_eps=c.get("layer_norm_eps", 1e-12),
        activation=c.get("hidden_act", "gelu"),
        max_tokens=c["max_position_embeddings"] - first,
        positions=c["max_position_embeddings"],
        first_position=first,
        token_types=0 if family == "mpnet" else c.get("type_vocab_size", 2),
        distance_buckets=c.get("relative_attention_num_buckets", 32) if family == "mpnet" else 0,
    )


def _pad_id(c: dict[str, Any]) -> int:
    pad = c.get("pad_token_id")
    return _ROBERTA_PAD if pad is None else pad


def _nomic_config(c: dict[str, Any]) -> Config:
    """Checkpoints write GPT-2's names; current transformers writes BERT's."""
    activation = c.get("activation_function", c.get("hidden_act", "swiglu"))
    rope = c.get("rope_parameters") or {}
    for key, wanted in (("prenorm", False), ("rotary_emb_interleaved", False), ("use_rms_norm", False)):
        if c.get(key, wanted) not in (wanted, None):
            raise unsupported(f"nomic_bert with {key} = {c[key]!r} is not supported")
    if c.get("rotary_emb_fraction", 1.0) != 1.0 or activation not in ("swiglu", "silu"):
        raise unsupported(
            "nomic_bert is supported with rotation of whole heads and swiglu only, as in nomic-embed-text"
        )
    # Versions 1 and 1.5 were trained on 2,048 tokens and say 8,192, which needs another scaling of positions.
    longest = c.get("max_trained_positions") or c.get("n_positions") or c["max_position_embeddings"]
    return Config(
        vocab_size=c["vocab_size"],
        hidden_size=c.get("n_embd") or c["hidden_size"],
        layers=c.get("n_layer") or c["num_hidden_layers"],
        heads=c.get("n_head") or c["num_attention_heads"],
        intermediate_size=c.get("n_inner") or c["intermediate_size"],
        norm_eps=c.get("layer_norm_epsilon") or c.get("layer_norm_eps") or 1e-12,
        activation="silu",
        max_tokens=longest,
        token_types=c.get("type_vocab_size", 2),
        rope_base=float(c.get("rotary_emb_base") or rope.get("rope_theta") or 1000),
        gated=True,
        attention_bias=bool(c.get("qkv_proj_bias", False)),
        mlp_bias=bool(c.get("mlp_fc1_bias", False)),
    )


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self._heads, self._rope_base = c.heads, c.rope_base
        self._activation = ACTIVATIONS[c.activation]
        self.query = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.key = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.value = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.out = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.attention_norm = nn.LayerNorm(c.hidden_size, eps=c.norm_eps)
        self.up = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        if c.gated:
            self.gate = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)
        self.mlp_norm = nn.LayerNorm(c.hidden_size, eps=c.norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        x = self.attention_norm(x + self._attend(x, mask))
        return self.mlp_norm(x + self._feed_forward(x))

    def _attend(self, x: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = (split_heads(f(x), self._heads) for f in (self.query, self.key, self.value))
        if self._rope_base is not None:
            q, k = rotate(q, self._rope_base), rotate(k, self._rope_base)
        return self.out(attend(q, k, v, mask))

    def _feed_forward(self, x: mx.array) -> mx.array:
        if "gate" in self:
            return self.down(self._activation(self.gate(x)) * self.up(x))
        return self.down(self._activation(self.up(x)))


class Model(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        c = self._config = config_of(config)
        if c.activation not in ACTIVATIONS:
            raise unsupported(f"the activation {c.activation!r} is not supported")
        self.word = nn.Embedding(c.vocab_size, c.hidden_size)
        if c.positions:
            self.position = nn.Embedding(c.positions, c.hidden_size)
        if c.token_types:
            self.token_type = nn.Embedding(c.token_types, c.hidden_size)
        if c.distance_buckets:
            self.distance = nn.Embedding(c.distance_buckets, c.heads)
        self.norm = nn.LayerNorm(c.hidden_size, eps=c.norm_eps)
        self.layers = [Layer(c) for _ in range(c.layers)]

    @property
    def max_tokens(self) -> int:
        return self._config.max_tokens

    def __call__(self, tokens: mx.array, real: mx.array | None, types: mx.array | None = None) -> mx.array:
        """Hidden states of right-padded rows; see encoders.Encoder."""
        c = self._config
        x = self.word(tokens)
        if c.positions:
            x = x + self.position(mx.arange(c.first_position, c.first_position + tokens.shape[1]))
        if c.token_types:
            one_type = types is None or c.token_types < 2
            x = x + self.token_type(mx.zeros((1, 1), mx.int32) if one_type else types)
        x = self.norm(x)
        mask = self._mask(tokens.shape[1], real, x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def _mask(self, length: int, real: mx.array | None, dtype: mx.Dtype) -> mx.array | None:
        keys = None if real is None else real[:, None, None, :]
        if not self._config.distance_buckets:
            return keys
        bias = self.distance(distance_buckets(length, self._config.distance_buckets))
        bias = bias.transpose(2, 0, 1)[None].astype(dtype)
        return bias if keys is None else mx.where(keys, bias, mx.array(-mx.inf, dtype))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Weights of a checkpoint under this module's names, without those of heads for other tasks."""
        found = {}
        for name, array in weights.items():
            new = rename(name)
            if new is None:
                continue
            if ".Wqkv." in new:
                for part, piece in zip(("query", "key", "value"), mx.split(array, 3), strict=True):
                    found[new.replace("Wqkv", part)] = piece
            else:
                found[new] = array
        return found


def distance_buckets(length: int, count: int) -> mx.array:
    """Bucket of each pair (query, key) by their distance: one per distance when near, wider ones further away."""
    half = count // 2
    exact = half // 2
    offset = mx.arange(length)[None, :] - mx.arange(length)[:, None]
    distance = mx.abs(offset)
    far = mx.log(mx.maximum(distance, 1).astype(mx.float32) / exact) / math.log(_MAX_DISTANCE / exact)
    far = mx.minimum(exact + (far * (half - exact)).astype(mx.int32), half - 1)
    return mx.where(offset > 0, half, 0) + mx.where(distance < exact, distance, far)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """(rows, tokens, width) to (rows, heads, tokens, width of a head)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def rotate(x: mx.array, base: float) -> mx.array:
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=base, scale=1.0, offset=0)


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Attention in both directions; heads are joined again."""
    x = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


_PREFIX = re.compile(r"^(bert|roberta|distilbert|mpnet|nomic_bert)\.")
# Heads for other tasks, and constants that old checkpoints stored.
_DROPPED = re.compile(
    r"^(pooler|cls|lm_head|classifier|qa_outputs|pre_classifier|vocab_\w+)\."
    r"|position_ids$|rotary_emb\.inv_freq$"
)
_RENAMED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"^embeddings\.word_embeddings\.", "word."),
        (r"^embeddings\.position_embeddings\.", "position."),
        (r"^embeddings\.token_type_embeddings\.", "token_type."),
        (r"^(embeddings\.LayerNorm|emb_ln)\.", "norm."),
        (r"^encoder\.relative_attention_bias\.", "distance."),
        (r"^(encoder|transformer)\.layers?\.", "layers."),
        (r"\.attention\.(self\.query|attn\.q|q_lin)\.", ".query."),
        (r"\.attention\.(self\.key|attn\.k|k_lin)\.", ".key."),
        (r"\.attention\.(self\.value|attn\.v|v_lin)\.", ".value."),
        (r"\.attn\.Wqkv\.", ".Wqkv."),
        (r"\.(attention\.output\.dense|attention\.attn\.o|attention\.out_lin|attn\.out_proj)\.", ".out."),
        (r"\.(attention\.output\.LayerNorm|attention\.LayerNorm|sa_layer_norm|norm1)\.", ".attention_norm."),
        (r"\.(intermediate\.dense|ffn\.lin1|mlp\.fc11)\.", ".up."),
        (r"\.mlp\.fc12\.", ".gate."),
        (r"\.(output\.dense|ffn\.lin2|mlp\.fc2)\.", ".down."),
        (r"\.(output\.LayerNorm|output_layer_norm|norm2)\.", ".mlp_norm."),
    )
)


def rename(name: str) -> str | None:
    """The name here of a weight of a checkpoint; None for one that is not needed."""
    name = _PREFIX.sub("", name)
    if _DROPPED.search(name):
        return None
    for pattern, new in _RENAMED:
        name = pattern.sub(new, name)
    return name
