"""The one package that touches mlx-lm.

mlx-lm is pinned exactly because its batching interface changes between patch releases. Everything the engine
needs of it passes through here, and tests/runner/test_mlxlm_contract.py holds the signatures this package relies on, so
that an upgrade fails loudly in one place.

Importing it imports mlx, mlx-lm and transformers, which takes seconds: only the engine's thread does it. Streams of
MLX are bound to threads, so that thread is also the only one that may call anything here.
"""

from ollmlx.runner.mlx.mlxlm.adapters import AdapterSwitch, convert_peft, try_on
from ollmlx.runner.mlx.mlxlm.batch import (
    Batch,
    NewRow,
    PrefillProgress,
    Token,
)
from ollmlx.runner.mlx.mlxlm.cache_files import CacheCodec, identity
from ollmlx.runner.mlx.mlxlm.caches import (
    CacheOperations,
    CacheTraits,
    PositionedKVCache,
    make_caches,
    settle,
    warm_up,
)
from ollmlx.runner.mlx.mlxlm.continuous import make_batch
from ollmlx.runner.mlx.mlxlm.model import (
    Device,
    LoadedModel,
    available_bytes,
    build,
    describe_device,
    free_device_bytes,
    load_config,
    load_tokenizer,
    load_weights,
    memory,
    parameter_count,
    prepare_weights,
    read_weights,
    release_memory,
    select_device,
    warm_up_device,
    weight_bytes,
    wide_bytes,
)
from ollmlx.runner.mlx.mlxlm.pace import PREFILL_CHUNK_BUSY, PREFILL_CHUNK_IDLE
from ollmlx.runner.mlx.mlxlm.quantization import Plan, Scheme, quantize
from ollmlx.runner.mlx.mlxlm.tokens import decoder, token_logprob, with_tokenizer

__all__ = [
    "PREFILL_CHUNK_BUSY",
    "PREFILL_CHUNK_IDLE",
    "AdapterSwitch",
    "Batch",
    "CacheCodec",
    "CacheOperations",
    "CacheTraits",
    "Device",
    "LoadedModel",
    "NewRow",
    "Plan",
    "PositionedKVCache",
    "PrefillProgress",
    "Scheme",
    "Token",
    "available_bytes",
    "build",
    "convert_peft",
    "decoder",
    "describe_device",
    "free_device_bytes",
    "identity",
    "load_config",
    "load_tokenizer",
    "load_weights",
    "make_batch",
    "make_caches",
    "memory",
    "parameter_count",
    "prepare_weights",
    "quantize",
    "read_weights",
    "release_memory",
    "select_device",
    "settle",
    "token_logprob",
    "try_on",
    "warm_up",
    "warm_up_device",
    "weight_bytes",
    "wide_bytes",
    "with_tokenizer",
]
