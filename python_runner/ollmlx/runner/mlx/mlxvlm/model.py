"""Models of mlx-vlm: reading them and running them as mlx-lm runs its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm
import mlx_vlm.utils as vlm_utils
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx import mlxlm

# Keys of config.json for which mlx-vlm would run a file of the model, or read one at a path that the model names.
_FOREIGN_FILES = ("model_file", "ple_storage")


def load_model(path: Path, config: Mapping[str, Any], progress: Callable[[int, int], None]) -> Any:
    """Build the model of `path` and read its weights part by part; `progress` as in mlxlm.load_weights.

    What is returned can be called as mlx-lm's models are: token ids and caches in, logits out.
    """
    _refuse_foreign_files(path, config)
    model = vlm_utils.load_model(path, lazy=True)
    # mlx-lm's generators make the caches, and call the model, by methods that the model class has otherwise.
    model.__class__ = type("Seeing", (_Seeing, type(model)), {})
    if None in plain_caches(model):
        raise ValueError("its caches cannot be joined into a batch")
    mlxlm.read_weights(model, progress)
    return model


def _refuse_foreign_files(path: Path, config: Mapping[str, Any]) -> None:
    """mlx-vlm trusts a model's files more than they deserve."""
    for part in (config, config.get("text_config") or {}):
        for key in _FOREIGN_FILES:
            if part.get(key):
                raise ValueError(
                    f"its config.json has {key}, and files that come with a model are not executed"
                )
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text()).get("weight_map", {}).values()
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("its index of weights names files outside of the model")


class _Seeing:
    """What mlx-lm's generators expect of a model, for one of mlx-vlm."""

    # Whose code computes with the weights.
    library = f"mlx-vlm {mlx_vlm.__version__}"

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        fields = {"position_ids": _positions(cache, tokens.shape[1])} if is_positioned(self) else {}
        return self.language_model(tokens, cache=cache, **fields).logits

    def make_cache(self) -> list[Any]:
        caches = plain_caches(self)
        if is_positioned(self):
            return [mlxlm.PositionedKVCache() if type(c) is mlx_cache.KVCache else c for c in caches]
        return caches


def is_positioned(model: Any) -> bool:
    """Whether a token's position is not its number in the prompt: an image takes fewer positions than tokens."""
    return hasattr(model.language_model, "get_rope_index")


def _language_caches(model: Any) -> list[Any]:
    """Caches as mlx-vlm makes them."""
    language = model.language_model
    if hasattr(language, "make_cache"):
        return language.make_cache()
    return [mlx_cache.KVCache() for _ in language.layers]


def plain_caches(model: Any) -> list[Any]:
    """Caches that batches know, for a row whose positions are not known yet; None where there is no such cache."""
    return [_batchable(cache) for cache in _language_caches(model)]


def _batchable(cache: Any) -> Any | None:
    """mlx-lm's form of a cache of mlx-vlm, whose classes have the same names and another ancestry; None for one that
    has none."""
    name = type(cache).__name__
    if name == "KVCache":
        return mlx_cache.KVCache()
    if name == "RotatingKVCache":
        return mlx_cache.RotatingKVCache(max_size=cache.max_size, keep=cache.keep)
    if name == "ArraysCache":
        # Its layers ask more of it than mlx-lm's can do; batches take it as it is.
        return cache
    return None


def _positions(caches: list[Any] | None, length: int) -> mx.array:
    """Positions of `length` more tokens of text, the same on all three axes, of shape (3, rows, length)."""
    offset = next((c.offset for c in caches or () if hasattr(c, "offset")), 0)
    start = offset[:, None] if isinstance(offset, mx.array) else mx.array([[offset]])
    positions = mx.maximum(start + mx.arange(length)[None], 0)
    return mx.broadcast_to(positions[None], (3, *positions.shape))
