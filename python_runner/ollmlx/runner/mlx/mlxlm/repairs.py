"""Faults of mlx-lm's models: code that fails with several rows, and code that trusts a configuration too much."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models import base, gemma2

from ollmlx.runner.mlx.mlxlm.mixed import Both


def install() -> None:
    """Have the models compute several rows rightly. To be called on the thread that computes."""
    gemma2.create_attention_mask = _mask_of_groups


def _mask_of_groups(h: mx.array, cache: Any = None, **options: Any) -> mx.array | Both | None:
    """Gemma 2's attention has a dimension for the heads that share keys, to which masks of several rows, shape
    (rows, 1, length, total), do not fit."""
    return _for_groups(base.create_attention_mask(h, cache, **options))


def _for_groups(mask: Any) -> Any:
    if isinstance(mask, Both):
        return Both(_for_groups(mask.rows), _for_groups(mask.prompt))
    return mask[:, :, None] if isinstance(mask, mx.array) and mask.ndim == 4 else mask


def refuse_writes_beyond_logits(model: Any, vocabulary: int) -> None:
    """Phi-3-small's code writes to the logits of certain tokens, whether the model has them or not: into the memory of
    others if it does not. Raises ValueError then."""
    written = getattr(model, "_dummy_tokenizer_ids", None)
    if written is not None and written.max().item() >= vocabulary:
        raise ValueError(f"its vocab_size of {vocabulary} is too small for a model of its kind")
