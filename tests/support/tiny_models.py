"""Tiny models with random weights, made at test time, one for each kind of cache and layer that mlx-lm knows.

They say nothing sensible, but they say it deterministically: what they are for is to compare one way of
running a model with another. The tokenizer has one token for each byte, so every id sequence decodes and
every text encodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 256 + len(_SPECIAL_TOKENS)

# Plain ChatML without system prompt, tools or thinking.
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_DENSE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}

# Architecture: what its configuration has besides _DENSE, or instead of it.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # dense attention
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "phi3": {"rope_scaling": None},
    # sliding window
    "gemma3_text": {"sliding_window": 32, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    # mixture of experts
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "moe_intermediate_size": 64, "norm_topk_prob": True,
    },
    # latent attention
    "deepseek_v2": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_key_value_heads": 4, "attention_bias": False,
        "routed_scaling_factor": 1.0, "topk_method": "greedy", "n_group": 1, "topk_group": 1,
        "rope_scaling": {
            "type": "yarn", "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0,
            "original_max_position_embeddings": 2048, "beta_fast": 32, "beta_slow": 1,
        },
    },
    # caches that cannot be joined into a batch
    "afm7": {"hidden_dim": 64, "num_layers": 3, "num_kv_reuse_layers": 1, "num_heads": 4, "num_kv_heads": 2},
    "llama4": {
        "text_config": {
            **_DENSE, "model_type": "llama4_text", "attention_bias": False, "attention_chunk_size": 64,
            "interleave_moe_layer_step": 1, "intermediate_size_mlp": 128, "num_experts_per_tok": 1,
            "num_local_experts": 2, "num_hidden_layers": 4, "rope_scaling": None, "use_qk_norm": True,
        }
    },
    # state space
    "mamba": {
        "intermediate_size": 128, "state_size": 16, "conv_kernel": 4, "use_bias": False,
        "use_conv_bias": True, "time_step_rank": 8, "expand": 2,
    },
    "mamba2": {
        "num_heads": 8, "head_dim": 16, "state_size": 16, "conv_kernel": 4, "expand": 2, "n_groups": 1,
        "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True, "chunk_size": 32,
        "time_step_limit": [0.0, 1e9], "time_step_rank": "auto", "time_step_min": 0.001, "time_step_max": 0.1,
        "rms_norm": True, "ssm_state_size": 16,
    },
    # attention and convolution in turn
    "lfm2": {
        "block_dim": 64, "block_ff_dim": 128, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False, "conv_bias": False, "conv_L_cache": 3, "norm_eps": 1e-5,
        "full_attn_idxs": [1], "layer_types": ["conv", "full_attention"],
    },
}  # fmt: skip

# More of the same kinds, for tests that are about nothing but being right.
MORE_ARCHITECTURES: dict[str, dict[str, Any]] = {
    # dense attention
    "qwen2": {},
    "gpt_neox": {"layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.5},
    # sliding window, in turn with full attention; with experts and attention sinks
    "cohere2": {"sliding_window": 32, "sliding_window_pattern": 2, "layer_norm_eps": 1e-5, "logit_scale": 1.0},
    "exaone4": {
        "sliding_window": 32, "sliding_window_pattern": "LG", "rope_scaling": None,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_oss": {
        "sliding_window": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # windows of a part of the layers; scales by position; keys and values of earlier layers
    "ministral3": {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32,
        "rope_parameters": {
            "type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5,
            "original_max_position_embeddings": 64,
        },
    },
    "gemma4_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "sliding_window": 32, "global_head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": VOCAB_SIZE,
    },
    # positions that are learned
    "gpt2": {
        "n_ctx": 2048, "n_positions": 2048, "n_embd": 64, "n_head": 4, "n_layer": 2, "layer_norm_epsilon": 1e-5,
    },
    # no attention in some layers
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {"attention": attention, "ffn": {"ffn_mult": 2.0}}
            for attention in ({"n_heads_in_group": 2}, {"replace_with_linear": True}, {"n_heads_in_group": 2})
        ],
    },
    # several rows fail in mlx-lm: masks, positions and bases of positions are those of one row
    "gemma2": {"query_pre_attn_scalar": 16, "final_logit_softcapping": 1e4, "num_hidden_layers": 6},
    "gpt_bigcode": {
        "n_positions": 2048, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_inner": 128,
        "layer_norm_epsilon": 1e-5,
    },
    "internlm2": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    # latent attention, dense and with experts
    "minicpm3": {
        "dim_model_base": 64, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16, "scale_depth": 1.4, "scale_emb": 4.0, "num_key_value_heads": 4,
        "rope_scaling": {
            "type": "longrope", "long_factor": [1.0] * 4, "short_factor": [1.0] * 4,
            "original_max_position_embeddings": 2048,
        },
    },
    "deepseek_v3": {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "num_key_value_heads": 4, "n_group": 1,
        "topk_group": 1,
    },
    # recurrent state and attention, in turn or side by side, with experts or without
    "nemotron_h": {
        "attention_bias": False, "mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_proj_bias": False,
        "ssm_state_size": 16, "conv_kernel": 4, "n_groups": 1, "mlp_bias": False, "layer_norm_epsilon": 1e-5,
        "use_bias": False, "use_conv_bias": True, "hybrid_override_pattern": ["M", "*", "-"],
        "num_hidden_layers": 3, "time_step_limit": [0.0, 1e9],
    },
    "qwen3_next": {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "num_experts": 4, "num_experts_per_tok": 2,
        "decoder_sparse_step": 1, "shared_expert_intermediate_size": 32, "mlp_only_layers": [],
        "moe_intermediate_size": 32, "partial_rotary_factor": 0.5, "full_attention_interval": 2,
        "norm_topk_prob": True,
    },
    "falcon_h1": {
        "mamba_chunk_size": 32, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_d_state": 16,
        "mamba_n_heads": 8, "mamba_expand": 2,
    },
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
        "mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2, "num_experts": 2, "num_experts_per_tok": 1,
    },
    "granitemoehybrid": {
        "attention_bias": False, "embedding_multiplier": 1.0, "attention_multiplier": 0.25,
        "logits_scaling": 1.0, "residual_multiplier": 1.0, "layer_types": ["mamba", "attention"],
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "mamba_n_heads": 8,
        "mamba_d_head": 16, "mamba_proj_bias": False, "mamba_d_state": 16, "mamba_d_conv": 4,
        "mamba_n_groups": 1, "mamba_conv_bias": True,
    },
    "recurrent_gemma": {
        "attention_bias": False, "conv1d_width": 4, "logits_soft_cap": 30.0, "attention_window_size": 32,
        "block_types": ["recurrent", "attention"],
    },
}  # fmt: skip


def make_model(
    directory: Path, architecture: str, *, seed: int = 0, endless: bool = False, **sizes: int
) -> Path:
    """Write a model of `architecture` in Hugging Face layout into `directory` and return it.

    An endless model has no end-of-sequence token: its answers are as long as they may be. `sizes` replace
    entries of the configuration, for example hidden_size.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path
    from mlx_lm import utils

    config = {
        "model_type": architecture,
        **_DENSE,
        **(ARCHITECTURES | MORE_ARCHITECTURES)[architecture],
        **sizes,
        "pad_token_id": 256,
    }
    if not endless:
        config["eos_token_id"] = VOCAB_SIZE - 1
    mx.random.seed(seed)
    model_class, arguments = utils._get_classes(config)
    model = model_class(arguments.from_dict(config))
    model.update(tree_map_with_path(_enliven, model.parameters()))

    directory.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(
        str(directory / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer(directory, endless)
    return directory


def _enliven(name: str, array: Any) -> Any:
    """Weights under which the text depends on the whole prompt; freshly initialised ones repeat a token or
    forget."""
    if name.endswith("A_log"):
        # The state of state-space layers decays with exp(A_log): slowly, then.
        return array * 0 - 4
    return array * 3 if array.ndim > 1 else array


def write_tokenizer(directory: Path, endless: bool = False, extra_tokens: Sequence[str] = ()) -> None:
    """A byte-level tokenizer without merges, with ChatML's special tokens and `extra_tokens` after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*_SPECIAL_TOKENS, *extra_tokens])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": None if endless else _SPECIAL_TOKENS[-1],
                "chat_template": _CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": False,
            }
        )
    )


def make_adapter(directory: Path, model: Path, *, seed: int = 0, rank: int = 4, dora: bool = False) -> Path:
    """Write a random LoRA (or DoRA) adapter for `model` in MLX form into `directory` and return it."""
    import mlx.core as mx
    import mlx_lm
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    parameters = {"rank": rank, "scale": 20.0, "dropout": 0.0}
    loaded, _ = mlx_lm.load(str(model))
    linear_to_lora_layers(loaded, 2, parameters, use_dora=dora)
    mx.random.seed(seed)
    weights = {
        name: mx.random.normal(array.shape) * 0.2 if name.endswith(("lora_a", "lora_b")) else array
        for name, array in tree_flatten(loaded.parameters())
        if name.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "m")
    }
    directory.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def peft_adapter(directory: Path, mlx_form: Path) -> Path:
    """Write an adapter in MLX form into `directory` as PEFT would have saved it, and return it."""
    import mlx.core as mx

    config = json.loads((mlx_form / "adapter_config.json").read_text())
    parameters = config["lora_parameters"]
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
    weights = {}
    for name, array in mx.load(str(mlx_form / "adapters.safetensors")).items():
        module, _, leaf = name.rpartition(".")
        weights[f"base_model.model.{module}.{names[leaf]}"] = array.T if array.ndim == 2 else array
    directory.mkdir()
    mx.save_safetensors(str(directory / "adapter_model.safetensors"), weights)
    settings = {
        "peft_type": "LORA", "r": parameters["rank"], "lora_alpha": parameters["scale"] * parameters["rank"],
        "bias": "none", "use_dora": config["fine_tune_type"] == "dora", "fan_in_fan_out": False,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory
