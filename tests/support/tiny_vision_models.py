"""Tiny models that see, with random weights, made at test time: one for each family that is checked.

Like those of tiny_models they say nothing sensible, but deterministically, and what they say depends on the images.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.tiny_models import _DENSE, VOCAB_SIZE, _enliven, write_tokenizer

_EOS = 258


@dataclass(frozen=True)
class Tiny:
    """What the files of one family say."""

    # Its special tokens; they follow those of tiny_models.
    tokens: list[str]
    # What stands for an image in a rendered chat.
    mark: str
    # Makes config.json, given the id of each token and the size of the vocabulary.
    config: Callable[[dict[str, int], int], dict[str, Any]]
    preprocessor: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)
    # Named tokens of tokenizer_config.json.
    named: dict[str, str] = field(default_factory=dict)
    # False: a template that takes the content of a message as a string.
    parts: bool = True


def _text(vocab: int, **fields: Any) -> dict[str, Any]:
    return {**_DENSE, "vocab_size": vocab, **fields}


_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "patch_size": 8, "image_size": 32, "num_channels": 3,
}  # fmt: skip
_QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
_MROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}


def _qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _qwen_pixels(kind: str, patch: int) -> dict[str, Any]:
    return {
        "image_processor_type": f"{kind}ImageProcessor", "patch_size": patch, "temporal_patch_size": 2, "merge_size": 2,
        "min_pixels": (patch * 2) ** 2, "max_pixels": (patch * 8) ** 2,
    }  # fmt: skip


def _qwen2_vl(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    vision = {
        "model_type": "qwen2_vl", "depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14,
        "spatial_patch_size": 14, "mlp_ratio": 2,
    }  # fmt: skip
    return {**_text(vocab, rope_scaling=_MROPE), **_qwen_ids(ids), "vision_config": vision}


def _qwen2_5_vl(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    vision = {
        "model_type": "qwen2_5_vl", "depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64,
        "num_heads": 2, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return {**_text(vocab, rope_scaling=_MROPE), **_qwen_ids(ids), "vision_config": vision}


def _qwen3_vl(ids: dict[str, int], vocab: int, **text: Any) -> dict[str, Any]:
    vision = {
        "model_type": "qwen3_vl", "depth": 3, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64,
        "num_heads": 2, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    inner = _text(vocab, model_type="qwen3_vl_text", num_hidden_layers=3, rope_scaling=_MROPE, **text)
    return {"text_config": inner, **_qwen_ids(ids), "vision_config": vision, "vocab_size": vocab}


def _qwen3_vl_moe(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    config = _qwen3_vl(
        ids, vocab, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[],
        moe_intermediate_size=64,
    )  # fmt: skip
    config["vision_config"]["model_type"] = "qwen3_vl_moe"
    return config


def _qwen3_5(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    vision = {
        "model_type": "qwen3_5", "depth": 2, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64,
        "num_heads": 2, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [],
    }  # fmt: skip
    rope = {
        "type": "default",
        "mrope_section": [2, 3, 3],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    }
    inner = _text(
        vocab, model_type="qwen3_5_text", num_hidden_layers=4, full_attention_interval=2, rope_parameters=rope,
        linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=32, linear_value_head_dim=32,
        linear_conv_kernel_dim=4,
    )  # fmt: skip
    return {"text_config": inner, **_qwen_ids(ids), "vision_config": vision, "vocab_size": vocab}


def _qwen3_5_moe(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    config = _qwen3_5(ids, vocab)
    config["vision_config"]["model_type"] = "qwen3_5_moe"
    config["text_config"] |= {
        "model_type": "qwen3_5_moe_text", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    }  # fmt: skip
    return config


def _pixtral(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    vision = {
        "model_type": "pixtral", "num_hidden_layers": 2, "hidden_size": 32, "head_dim": 16, "intermediate_size": 64,
        "num_attention_heads": 2, "image_size": 64, "patch_size": 8, "num_channels": 3,
    }  # fmt: skip
    return {
        "text_config": _text(vocab, model_type="mistral"), "vision_config": vision, "image_token_index": ids["[IMG]"],
        "vocab_size": vocab, "spatial_merge_size": 2,
    }  # fmt: skip


def _lfm2_vl(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    inner = _text(
        vocab, model_type="lfm2", block_dim=64, block_ff_dim=128, block_multiple_of=32, block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False, conv_bias=False, conv_L_cache=3, norm_eps=1e-5, full_attn_idxs=[1, 2, 4],
        layer_types=["conv", "full_attention", "full_attention", "conv", "full_attention"], num_hidden_layers=5,
        tie_word_embeddings=True, intermediate_size=128, conv_dim=64, conv_dim_out=64, num_heads=4,
    )  # fmt: skip
    vision = {
        "model_type": "lfm2_vl", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 16, "num_patches": 256,
    }  # fmt: skip
    return {
        "text_config": inner, "vision_config": vision, "image_token_id": ids["<image>"], "vocab_size": vocab,
        "projector_hidden_size": 64, "downsample_factor": 2,
    }  # fmt: skip


def _gemma3(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    inner = _text(
        vocab, model_type="gemma3_text", sliding_window=24, sliding_window_pattern=2, query_pre_attn_scalar=16,
        mm_tokens_per_image=16,
    )  # fmt: skip
    return {
        "text_config": inner, "vision_config": {**_SIGLIP, "model_type": "siglip_vision_model", "image_size": 64},
        "image_token_index": ids["<image_soft_token>"], "mm_tokens_per_image": 16, "hidden_size": 64,
        "vocab_size": vocab,
    }  # fmt: skip


def _gemma4(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    inner = _text(
        vocab, model_type="gemma4_text", num_hidden_layers=4, global_head_dim=32, num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"], sliding_window=24,
        hidden_size_per_layer_input=16, vocab_size_per_layer_input=vocab, use_bidirectional_attention="vision",
    )  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16, "patch_size": 8,
        "position_embedding_size": 64, "pooling_kernel_size": 2, "default_output_length": 16,
    }  # fmt: skip
    return {
        "text_config": inner, "vision_config": vision, "image_token_id": ids["<|image|>"], "audio_token_id": 0,
        "video_token_id": ids["<|video|>"], "boi_token_id": ids["<|image>"], "eoi_token_id": ids["<image|>"],
        "hidden_size": 64, "vocab_size": vocab,
    }  # fmt: skip


def _idefics3(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    return {
        "text_config": _text(vocab, model_type="llama"), "vision_config": {**_SIGLIP, "model_type": "idefics3"},
        "image_token_id": ids["<image>"], "scale_factor": 2, "vocab_size": vocab,
    }  # fmt: skip


def _llava(ids: dict[str, int], vocab: int) -> dict[str, Any]:
    vision = {**_SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32}
    return {
        "text_config": _text(vocab, model_type="llama"), "vision_config": vision, "image_token_index": ids["<image>"],
        "vocab_size": vocab, "vision_feature_layer": -2,
    }  # fmt: skip


_PIXTRAL_TOKENS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
_PIXTRAL_PIXELS = {
    "image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 64},
    "patch_size": {"height": 8, "width": 8}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
_IDEFICS_TOKENS = [
    "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *[f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)],
]  # fmt: skip
_IDEFICS_PIXELS = {
    "do_image_splitting": True, "size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32},
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip

FAMILIES: dict[str, Tiny] = {
    "qwen2_vl": Tiny(_QWEN_TOKENS, _QWEN_MARK, _qwen2_vl, _qwen_pixels("Qwen2VL", 14)),
    "qwen2_5_vl": Tiny(_QWEN_TOKENS, _QWEN_MARK, _qwen2_5_vl, _qwen_pixels("Qwen2VL", 14)),
    "qwen3_vl": Tiny(_QWEN_TOKENS, _QWEN_MARK, _qwen3_vl, _qwen_pixels("Qwen2VL", 16)),
    "qwen3_vl_moe": Tiny(_QWEN_TOKENS, _QWEN_MARK, _qwen3_vl_moe, _qwen_pixels("Qwen2VL", 16)),
    "qwen3_5": Tiny(_QWEN_TOKENS, _QWEN_MARK, _qwen3_5, _qwen_pixels("Qwen2VL", 16)),
    "qwen3_5_moe": Tiny(_QWEN_TOKENS, _QWEN_MARK, _qwen3_5_moe, _qwen_pixels("Qwen2VL", 16)),
    "pixtral": Tiny(_PIXTRAL_TOKENS, "[IMG]", _pixtral, _PIXTRAL_PIXELS, {"patch_size": 8}),
    "mistral3": Tiny(
        _PIXTRAL_TOKENS, "[IMG]", _pixtral, _PIXTRAL_PIXELS, {"patch_size": 8, "spatial_merge_size": 2}
    ),
    "lfm2_vl": Tiny(
        ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
         *[f"<|img_row_{r}_col_{c}|>" for r in range(1, 4) for c in range(1, 4)]],
        "<image>", _lfm2_vl, {"image_processor_type": "Lfm2VlImageProcessor", "min_image_tokens": 4,
         "max_image_tokens": 16, "encoder_patch_size": 16, "downsample_factor": 2, "tile_size": 64},
    ),
    "gemma3": Tiny(
        ["<image_soft_token>", "<start_of_image>", "<end_of_image>"],
        "<start_of_image>",
        _gemma3,
        {
            "image_processor_type": "Gemma3ImageProcessor", "size": {"height": 64, "width": 64},
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        },
        {"image_seq_length": 16},
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "gemma4": Tiny(
        ["<|image|>", "<|image>", "<image|>", "<|video|>"],
        "<|image|>",
        _gemma4,
        {"patch_size": 8, "max_soft_tokens": 16, "pooling_kernel_size": 2},
        {"image_processor": {"patch_size": 8, "max_soft_tokens": 16, "pooling_kernel_size": 2}},
        {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
    ),
    "idefics3": Tiny(
        _IDEFICS_TOKENS, "<image>", _idefics3,
        {"image_processor_type": "Idefics3ImageProcessor", **_IDEFICS_PIXELS}, {"image_seq_len": 4},
    ),
    "smolvlm": Tiny(
        _IDEFICS_TOKENS, "<image>", _idefics3,
        {"image_processor_type": "SmolVLMImageProcessor", **_IDEFICS_PIXELS}, {"image_seq_len": 4},
    ),
    "llava": Tiny(
        ["<image>"], "<image>", _llava,
        {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        },
        {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        parts=False,
    ),
}  # fmt: skip


def _chat_template(tiny: Tiny) -> str:
    text = "{{ message.content }}"
    if tiny.parts:
        text = (
            "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
            "{% if part.type == 'image' %}" + tiny.mark + "{% else %}{{ part.text }}{% endif %}"
            "{% endfor %}{% endif %}"
        )
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n" + text + "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _enliven_gemma(name: str, array: Any) -> Any:
    """Gemma scales its embeddings up: small ones, or a token would see nothing but itself."""
    import mlx.core as mx

    if name.endswith("mm_input_projection_weight"):
        # Made of ones, which leave nothing of an image: after a layer norm its features add up to 0.
        return mx.random.normal(array.shape) * 0.2
    return array / 30 if "embed_tokens" in name else _enliven(name, array)


def make_vision_model(
    directory: Path, family: str, *, seed: int = 0, endless: bool = False, **sizes: Any
) -> Path:
    """Write a model of `family` in Hugging Face layout into `directory` and return it. `sizes` replace entries of the
    configuration, and the tower of one that says hidden_size gives as much."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path
    from mlx_vlm import utils

    tiny = FAMILIES[family]
    ids = {token: VOCAB_SIZE + i for i, token in enumerate(tiny.tokens)}
    config = {"model_type": family, "pad_token_id": 256, **tiny.config(ids, VOCAB_SIZE + len(ids)), **sizes}
    if "hidden_size" in sizes:
        config["vision_config"]["hidden_size"] = sizes["hidden_size"]
    if not endless:
        config["eos_token_id"] = _EOS
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))

    mx.random.seed(seed)
    model_class, _ = utils.get_model_and_args(config)
    made = json.loads(json.dumps(config))
    made.setdefault("text_config", {})
    model_config = model_class.ModelConfig.from_dict(made)
    model_config = utils.update_module_configs(model_config, model_class, made, ["text", "vision"])
    model = model_class.Model(model_config)
    model.update(
        tree_map_with_path(_enliven if not family.startswith("gemma") else _enliven_gemma, model.parameters())
    )
    mx.save_safetensors(
        str(directory / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )

    write_tokenizer(directory, endless, tiny.tokens)
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer |= {"chat_template": _chat_template(tiny), "pad_token": "<|endoftext|>", **tiny.named}
    if tiny.named:
        tokenizer["extra_special_tokens"] = tiny.named
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (directory / "preprocessor_config.json").write_text(json.dumps(tiny.preprocessor))
    if tiny.processor:
        (directory / "processor_config.json").write_text(json.dumps(tiny.processor))
    return directory


def picture(seed: int, size: tuple[int, int] = (48, 40), form: str = "PNG") -> bytes:
    """An image file with coarse coloured blocks."""
    import numpy as np
    from PIL import Image

    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(out, form)
    return out.getvalue()
