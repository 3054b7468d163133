"""Tiny GGUF files, written at test time: random weights in many architectures, and the demo model.

The random ones say nothing sensible, but they say it deterministically: what they are for is to compare one way
of running a file with another. Their tokenizer has one token for each byte, as that of tiny_models has. The demo
model says what its MLX form says, because it has the same weights and the same tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.support.tiny_models import _CHAT_TEMPLATE, _SPECIAL_TOKENS

DEMO = Path(__file__).resolve().parents[2] / "python_runner" / "ollmlx" / "models" / "demo"

WIDTH, FEED_FORWARD, LAYERS, HEADS, KV_HEADS, HEAD = 64, 128, 2, 4, 2, 16
EXPERTS = 4
CONTEXT = 2048

# Tokens of the vocabulary that are printable ASCII; they come first.
PRINTABLE = 94

# Tensor of a layer: its shape as (outputs, inputs), or (size,) for a norm or a bias.
Shapes = dict[str, tuple[int, ...]]

_ATTENTION: Shapes = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (HEADS * HEAD, WIDTH),
    "attn_k.weight": (KV_HEADS * HEAD, WIDTH),
    "attn_v.weight": (KV_HEADS * HEAD, WIDTH),
    "attn_output.weight": (WIDTH, HEADS * HEAD),
    "ffn_norm.weight": (WIDTH,),
}
_GATED: Shapes = {
    "ffn_gate.weight": (FEED_FORWARD, WIDTH),
    "ffn_up.weight": (FEED_FORWARD, WIDTH),
    "ffn_down.weight": (WIDTH, FEED_FORWARD),
}
_EXPERTS: Shapes = {
    "ffn_gate_inp.weight": (EXPERTS, WIDTH),
    "ffn_gate_exps.weight": (EXPERTS, FEED_FORWARD, WIDTH),
    "ffn_up_exps.weight": (EXPERTS, FEED_FORWARD, WIDTH),
    "ffn_down_exps.weight": (EXPERTS, WIDTH, FEED_FORWARD),
}
_HEAD_NORMS: Shapes = {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
_BIASES: Shapes = {
    "attn_q.bias": (HEADS * HEAD,),
    "attn_k.bias": (KV_HEADS * HEAD,),
    "attn_v.bias": (KV_HEADS * HEAD,),
}
_POST_NORMS: Shapes = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
_INNER, _STATE, _RANK = 128, 16, 8

# Name: architecture, tensors of a layer, further metadata.
ARCHITECTURES: dict[str, tuple[str, Shapes, dict[str, Any]]] = {
    "llama": ("llama", {**_ATTENTION, **_GATED}, {}),
    "mixtral": ("llama", {**_ATTENTION, **_EXPERTS}, {"expert_count": EXPERTS, "expert_used_count": 2}),
    "qwen2": ("qwen2", {**_ATTENTION, **_BIASES, **_GATED}, {}),
    "qwen3": ("qwen3", {**_ATTENTION, **_HEAD_NORMS, **_GATED}, {}),
    "qwen3moe": (
        "qwen3moe",
        {**_ATTENTION, **_HEAD_NORMS, **_EXPERTS},
        {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": FEED_FORWARD},
    ),
    "gemma2": (
        "gemma2",
        {**_ATTENTION, **_POST_NORMS, **_GATED},
        {"attention.sliding_window": 32, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "gemma3",
        {**_ATTENTION, **_HEAD_NORMS, **_POST_NORMS, **_GATED},
        {"attention.sliding_window": 32},
    ),
    "phi3": (
        "phi3",
        {
            "attn_norm.weight": (WIDTH,),
            "attn_qkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD, WIDTH),
            "attn_output.weight": (WIDTH, HEADS * HEAD),
            "ffn_norm.weight": (WIDTH,),
            "ffn_up.weight": (2 * FEED_FORWARD, WIDTH),
            "ffn_down.weight": (WIDTH, FEED_FORWARD),
        },
        {"rope.scaling.original_context_length": CONTEXT, "attention.sliding_window": 64},
    ),
    "olmo2": (
        "olmo2",
        {
            **{k: v for k, v in _ATTENTION.items() if not k.endswith("norm.weight")},
            "attn_q_norm.weight": (HEADS * HEAD,),
            "attn_k_norm.weight": (KV_HEADS * HEAD,),
            **_POST_NORMS,
            **_GATED,
        },
        {},
    ),
    "mamba": (
        "mamba",
        {
            "attn_norm.weight": (WIDTH,),
            "ssm_in.weight": (2 * _INNER, WIDTH),
            "ssm_conv1d.weight": (_INNER, 4),
            "ssm_conv1d.bias": (_INNER,),
            "ssm_x.weight": (_RANK + 2 * _STATE, _INNER),
            "ssm_dt.weight": (_INNER, _RANK),
            "ssm_dt.bias": (_INNER,),
            "ssm_a": (_INNER, _STATE),
            "ssm_d": (_INNER,),
            "ssm_out.weight": (WIDTH, _INNER),
        },
        {
            "ssm.conv_kernel": 4,
            "ssm.inner_size": _INNER,
            "ssm.state_size": _STATE,
            "ssm.time_step_rank": _RANK,
        },
    ),
}

# Kept in full precision whatever the file's type is: llama.cpp has no other code for them.
_ALWAYS_F32 = ("ssm_conv1d", "ssm_a", "ssm_d", "ffn_gate_inp", "position_embd", "token_types")

QUANTIZATIONS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
}
_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def make_gguf(
    path: Path,
    name: str,
    quantization: str = "F32",
    *,
    seed: int = 0,
    endless: bool = False,
    chat_template: str | None = _CHAT_TEMPLATE,
    extra_tokens: Sequence[str] = (),
    metadata: dict[str, Any] | None = None,
    layers: int = LAYERS,
) -> Path:
    """Write a random model of ARCHITECTURES[name] to `path` and return it.

    An endless model says printable ASCII only: no special token, which could end its answer, and no half of a
    character. `metadata` adds keys or replaces them.
    """
    architecture, shapes, extra = ARCHITECTURES[name]
    random = np.random.default_rng(seed)
    tokens, kinds = byte_vocabulary(extra_tokens)

    def tensors() -> Iterable[tuple[str, np.ndarray]]:
        embeddings = _random(random, "token_embd.weight", (len(tokens), WIDTH))
        if endless and architecture.startswith("gemma"):
            # Its output layer is the same matrix.
            embeddings[PRINTABLE:] /= 8
        yield "token_embd.weight", embeddings
        yield "output_norm.weight", np.ones(WIDTH, np.float32)
        if not architecture.startswith("gemma"):
            output = _random(random, "output.weight", (len(tokens), WIDTH))
            if endless:
                output[PRINTABLE:] = 0
            yield "output.weight", output
        for layer in range(layers):
            for tensor, shape in shapes.items():
                yield f"blk.{layer}.{tensor}", _random(random, tensor, shape)

    keys: dict[str, Any] = {
        "block_count": layers,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD if architecture != "mamba" else 0,
        "attention.head_count": HEADS if architecture != "mamba" else 0,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if architecture != "mamba":
        keys |= {
            "attention.head_count_kv": KV_HEADS,
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "rope.dimension_count": HEAD,
            "rope.freq_base": 10000.0,
        }
    eos = len(tokens) - 1 - len(extra_tokens)
    own = {f"{architecture}.{key}": value for key, value in {**keys, **extra}.items()}
    tokenizer = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{tokens[0]} {tokens[1]}"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": eos,
    }
    if chat_template is not None:
        tokenizer["tokenizer.chat_template"] = chat_template
    return write(path, architecture, {**own, **tokenizer, **(metadata or {})}, tensors(), quantization)


def make_bert_gguf(path: Path, pooling: gguf.PoolingType, *, seed: int = 0) -> Path:
    """Write a random BERT: for PoolingType.RANK with a classifier of one label, which makes it a ranker."""
    random = np.random.default_rng(seed)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    # A word begins with this mark in the file, and goes on without.
    tokens = special + [f"\u2581{c}" for c in letters] + letters
    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    def tensors() -> Iterable[tuple[str, np.ndarray]]:
        yield "token_embd.weight", _random(random, "token_embd.weight", (len(tokens), WIDTH))
        yield "token_types.weight", np.zeros((2, WIDTH), np.float32)
        yield "position_embd.weight", _random(random, "position_embd.weight", (512, WIDTH)) / 4
        yield "token_embd_norm.weight", ones
        yield "token_embd_norm.bias", zeros
        for layer in range(LAYERS):
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield f"blk.{layer}.{part}.weight", _random(random, part, (WIDTH, WIDTH))
                yield f"blk.{layer}.{part}.bias", zeros
            yield f"blk.{layer}.ffn_up.weight", _random(random, "ffn_up", (FEED_FORWARD, WIDTH))
            yield f"blk.{layer}.ffn_up.bias", np.zeros(FEED_FORWARD, np.float32)
            yield f"blk.{layer}.ffn_down.weight", _random(random, "ffn_down", (WIDTH, FEED_FORWARD))
            yield f"blk.{layer}.ffn_down.bias", zeros
            for norm in ("attn_output_norm", "layer_output_norm"):
                yield f"blk.{layer}.{norm}.weight", ones
                yield f"blk.{layer}.{norm}.bias", zeros
        if pooling == gguf.PoolingType.RANK:
            yield "cls.weight", _random(random, "cls.weight", (WIDTH, WIDTH))
            yield "cls.bias", zeros
            yield "cls.output.weight", _random(random, "cls.output.weight", (1, WIDTH))
            yield "cls.output.bias", np.zeros(1, np.float32)

    metadata = {
        "bert.block_count": LAYERS,
        "bert.context_length": 512,
        "bert.embedding_length": WIDTH,
        "bert.feed_forward_length": FEED_FORWARD,
        "bert.attention.head_count": HEADS,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": int(pooling),
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(special) + [1] * (len(tokens) - len(special)),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }
    return write(path, "bert", metadata, tensors())


def make_demo_gguf(path: Path, quantization: str = "F32") -> Path:
    """Write the bundled demo model as a GGUF file to `path` and return it."""
    from safetensors.numpy import load_file

    config = json.loads((DEMO / "config.json").read_text())
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    added = {t["id"]: t for t in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in vocabulary.items()}
    tokens = [by_id.get(i, f"[unused{i}]") for i in range(config["vocab_size"])]
    kinds = [_token_kind(i, i in by_id, added.get(i)) for i in range(config["vocab_size"])]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    metadata = {
        "general.name": "ollmlx demo",
        "qwen3.block_count": config["num_hidden_layers"],
        "qwen3.context_length": config["max_position_embeddings"],
        "qwen3.embedding_length": config["hidden_size"],
        "qwen3.feed_forward_length": config["intermediate_size"],
        "qwen3.attention.head_count": config["num_attention_heads"],
        "qwen3.attention.head_count_kv": config["num_key_value_heads"],
        "qwen3.attention.key_length": config["head_dim"],
        "qwen3.attention.value_length": config["head_dim"],
        "qwen3.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "qwen3.rope.freq_base": config["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(m) for m in tokenizer["model"]["merges"]],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": config["eos_token_id"][0],
        "tokenizer.ggml.padding_token_id": config["pad_token_id"],
        "tokenizer.chat_template": (DEMO / "chat_template.jinja").read_text(),
    }
    weights = load_file(DEMO / "model.safetensors")
    tensors = ((names.get_name(k, try_suffixes=(".weight",)), v) for k, v in sorted(weights.items()))
    return write(path, "qwen3", metadata, tensors, quantization)


def write(
    path: Path,
    architecture: str,
    metadata: dict[str, Any],
    tensors: Iterable[tuple[str, np.ndarray]],
    quantization: str = "F32",
) -> Path:
    """Write a GGUF file: `metadata` as typed by their Python values, matrices as `quantization`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(_FILE_TYPES[quantization])
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, array in tensors:
        kind = QUANTIZATIONS[quantization]
        if array.ndim == 1 or array.shape[-1] % 32 or any(part in name for part in _ALWAYS_F32):
            kind = QUANTIZATIONS["F32"]
        array = array.astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:
        writer.add_array(key, value)


def _random(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights under which the text depends on the whole prompt."""
    if name == "ssm_a":
        # The state decays slowly.
        return np.full(shape, -0.02, np.float32)
    if name.startswith("post_"):
        # What a layer adds must outweigh what it was given, or the model repeats its last token.
        return np.full(shape, 16, np.float32)
    if name.endswith("norm.weight"):
        return np.ones(shape, np.float32)
    if len(shape) == 1:
        return random.normal(0, 0.1, shape).astype(np.float32)
    return random.normal(0, 3 / np.sqrt(shape[-1]), shape).astype(np.float32)


def byte_vocabulary(extra: Sequence[str] = ()) -> tuple[list[str], list[int]]:
    """Tokens and their kinds: one for each byte, ChatML's special ones, and `extra` special ones."""
    from tokenizers import pre_tokenizers

    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), [*_SPECIAL_TOKENS, *extra]
    kinds = [gguf.TokenType.NORMAL] * len(alphabet) + [gguf.TokenType.CONTROL] * len(special)
    return [*alphabet, *special], [int(k) for k in kinds]


def _token_kind(_: int, known: bool, added: dict[str, Any] | None) -> int:
    if not known:
        return int(gguf.TokenType.UNUSED)
    if added is None:
        return int(gguf.TokenType.NORMAL)
    return int(gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED)
