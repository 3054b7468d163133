"""The parts of mlx-lm that ollmlx relies on are as ollmlx expects them.

mlx-lm changes them between patch releases; when this fails after an upgrade, mlxlm.py is the one module to
mend.
"""

from __future__ import annotations

import inspect
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm import utils
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.generate import BatchGenerator, GenerationBatch, PromptProcessingBatch
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
        (
            BatchGenerator.__init__,
            ["self", "model", "max_tokens", "stop_tokens", "sampler", "logits_processors",
             "completion_batch_size", "prefill_batch_size", "prefill_step_size", "max_kv_size", "stream"],
        ),
        (
            BatchGenerator.insert_segments,
            ["self", "segments", "max_tokens", "caches", "all_tokens", "samplers", "logits_processors",
             "stop_sequences"],
        ),
        (BatchGenerator.remove, ["self", "uids", "return_prompt_caches"]),
        (BatchGenerator.next, ["self"]),
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


def test_responses() -> None:
    fields = list(GenerationBatch.Response.__dataclass_fields__)
    assert fields[:4] == ["uid", "token", "logprobs", "finish_reason"]
    assert list(PromptProcessingBatch.Response.__dataclass_fields__)[:2] == ["uid", "progress"]


def test_attributes() -> None:
    assert isinstance(BatchGenerator.prompt_cache_nbytes, property)
    # The chunk size is set anew before each step.
    assert "self.prefill_step_size" in inspect.getsource(BatchGenerator._next)
    for name in (
        "has_chat_template", "has_thinking", "think_start", "think_end", "has_tool_calling",
        "tool_call_start", "tool_call_end", "tool_parser", "eos_token_ids", "apply_chat_template",
    ):  # fmt: skip
        assert hasattr(TokenizerWrapper, name) or name in inspect.getsource(TokenizerWrapper.__init__), name
    for name in ("KVCache", "RotatingKVCache", "ArraysCache", "CacheList"):
        assert hasattr(cache, name)
    for name in ("get_active_memory", "get_peak_memory", "get_cache_memory", "clear_cache", "device_info"):
        assert hasattr(mx, name)
