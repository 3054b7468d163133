"""The parts of mlx-lm that ollmlx relies on are as ollmlx expects them.

mlx-lm changes them between patch releases; when this fails after an upgrade, mlxlm.py is the one module to
mend.
"""

from __future__ import annotations

import copy
import inspect
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm import utils
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.generate import generate_step
from mlx_lm.models import cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner import utils as tuner_utils

REPOSITORY = Path(__file__).resolve().parents[2]


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_pinned_version_is_the_installed_one() -> None:
    pinned = next(
        line.split("==")[1].strip('", ')
        for line in (REPOSITORY / "pyproject.toml").read_text().splitlines()
        if '"mlx-lm==' in line
    )
    assert metadata.version("mlx-lm") == pinned == mlx_lm.__version__


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (cache.BatchKVCache.prepare, ["self", "left_padding", "lengths", "right_padding"]),
        (
            utils.load_model,
            ["model_path", "lazy", "strict", "model_config", "get_model_classes", "trust_remote_code"],
        ),
        (utils.load_tokenizer, ["model_path", "tokenizer_config_extra", "eos_token_ids"]),
        (utils.load_config, ["model_path"]),
        (utils.get_total_parameters, ["model"]),
        (
            utils.quantize_model,
            ["model", "config", "group_size", "bits", "mode", "global_scale", "quant_predicate"],
        ),
        (utils.make_shards, ["weights", "max_file_size_gb"]),
        (utils.save_config, ["config", "config_path", "keep_vision_config"]),
        (mixed_quant_predicate_builder, ["recipe", "model", "group_size"]),
        (tuner_utils.load_adapters, ["model", "adapter_path"]),
        (tuner_utils.linear_to_lora_layers, ["model", "num_layers", "config", "use_dora"]),
        (cache.make_prompt_cache, ["model", "max_kv_size"]),
    ],
)  # fmt: skip
def test_signatures(function: object, expected: list[str]) -> None:
    assert parameters(function) == expected


@pytest.mark.parametrize("single", [cache.KVCache, cache.RotatingKVCache, cache.ArraysCache, cache.CacheList])
def test_caches_can_be_put_together_and_taken_apart(single: type) -> None:
    assert parameters(single.merge) == ["caches"]
    joined = {cache.KVCache: cache.BatchKVCache, cache.RotatingKVCache: cache.BatchRotatingKVCache}.get(
        single, single
    )
    for name, expected in (
        ("filter", ["self", "batch_indices"]), ("extend", ["self", "other"]), ("extract", ["self", "idx"]),
    ):  # fmt: skip
        assert parameters(getattr(joined, name)) == expected
    assert callable(joined.finalize)


def test_a_copied_cache_does_not_change_with_the_original() -> None:
    original = cache.KVCache()
    original.update_and_fetch(mx.ones((1, 1, 3, 2)), mx.ones((1, 1, 3, 2)))
    copied = copy.deepcopy(original)
    original.trim(1)
    original.update_and_fetch(mx.zeros((1, 1, 1, 2)), mx.zeros((1, 1, 1, 2)))
    assert copied.keys[..., :3, :].tolist() == mx.ones((1, 1, 3, 2)).tolist()


def test_attributes() -> None:
    steps = parameters(generate_step)
    assert {"sampler", "logits_processors", "max_tokens", "prompt_cache"} <= set(steps)
    for name in (
        "has_chat_template", "has_thinking", "think_start", "think_end", "has_tool_calling",
        "tool_call_start", "tool_call_end", "tool_parser", "eos_token_ids", "apply_chat_template",
    ):  # fmt: skip
        assert hasattr(TokenizerWrapper, name) or name in inspect.getsource(TokenizerWrapper.__init__), name
    for name in ("KVCache", "RotatingKVCache", "ArraysCache", "CacheList"):
        assert hasattr(cache, name)
    for name in ("get_active_memory", "get_peak_memory", "get_cache_memory", "clear_cache", "device_info"):
        assert hasattr(mx, name)
