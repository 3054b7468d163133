"""Models of mlx-vlm: reading them, running them as mlx-lm runs its own, and computing prompts with images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_vlm
import mlx_vlm.utils as vlm_utils
import numpy as np
from mlx_lm.models import cache as mlx_cache

from ollmlx.runner.mlx import mlxlm

# What a processor calls its account of which token is text and which is of an image.
_TOKEN_TYPES = "mm_token_type_ids"

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
    if None in _plain_caches(model):
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
        fields = {"position_ids": _positions(cache, tokens.shape[1])} if _is_positioned(self) else {}
        return self.language_model(tokens, cache=cache, **fields).logits

    def make_cache(self) -> list[Any]:
        caches = _plain_caches(self)
        if _is_positioned(self):
            return [mlxlm.PositionedKVCache() if type(c) is mlx_cache.KVCache else c for c in caches]
        return caches


def _is_positioned(model: Any) -> bool:
    """Whether a token's position is not its number in the prompt: an image takes fewer positions than tokens."""
    return hasattr(model.language_model, "get_rope_index")


def _language_caches(model: Any) -> list[Any]:
    """Caches as mlx-vlm makes them."""
    language = model.language_model
    if hasattr(language, "make_cache"):
        return language.make_cache()
    return [mlx_cache.KVCache() for _ in language.layers]


def _plain_caches(model: Any) -> list[Any]:
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


class ImagePrompt:
    """A prompt with images on its way into a KV cache. Belongs to the engine's thread.

    `done` tokens are in `caches`; `shift` is what is added to the number of a later token to get its position.
    """

    def __init__(
        self, model: Any, tokens: list[int], inputs: Mapping[str, Any], caches: list[Any] | None, done: int
    ) -> None:
        """`inputs` are a processor's, for the first of `tokens`; those after them are text."""
        self._model = model
        self.tokens = tokens
        self._ids = mx.array([tokens])
        self._inputs = _to_arrays(inputs)
        self.total = len(tokens)
        self.caches = _plain_caches(model) if caches is None else caches
        self.done = done
        # What the vision tower made of the images, merged with the embeddings of the text.
        self._embeddings: mx.array | None = None
        self._fields: dict[str, Any] = {}

    def step(self, tokens: int) -> None:
        """Compute up to `tokens` more, but never the last; `look` comes first."""
        end = min(self.done + tokens, self.total - 1)
        fields = dict(self._fields)
        if _TOKEN_TYPES in fields:
            fields[_TOKEN_TYPES] = fields[_TOKEN_TYPES][:, :end]
        self._model.language_model(
            self._ids[:, self.done : end],
            inputs_embeds=self._embeddings[:, self.done : end],
            cache=self.caches,
            **fields,
        )
        mx.eval([c.state for c in self.caches])
        self.done = end

    @property
    def whole(self) -> bool:
        """Whether all up to the last image has to be computed at once, from the first token: the tokens of an image see
        each other, those that follow as well as those before."""
        policy = getattr(self._model.language_model, "chunked_prefill_policy", None)
        return policy is not None and not policy(prefill_kwargs=self._inputs)

    @property
    def shift(self) -> int:
        if not _is_positioned(self._model):
            return 0
        grid = self._inputs.get("image_grid_thw")
        _, deltas = self._model.language_model.get_rope_index(self._ids, grid, None, self._mask())
        return int(deltas.item())

    def _mask(self) -> mx.array:
        return mx.ones(self._ids.shape, dtype=mx.int32)

    @property
    def looked(self) -> bool:
        return self._embeddings is not None

    def look(self) -> None:
        """Compute the images, all at once."""
        inputs = dict(self._inputs)
        pixels = inputs.pop("pixel_values")
        made = self._model.get_input_embeddings(self._ids, pixels, mask=self._mask(), **inputs)
        fields = made.to_dict()
        self._embeddings = fields.pop("inputs_embeds")
        self._fields = {**inputs, **{name: value for name, value in fields.items() if value is not None}}
        if self._embeddings.shape[1] != self.total:
            raise ValueError("the images do not fit the places for them")
        mx.eval(self._embeddings)


def _to_arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a processor on this thread."""
    return {
        name: [mx.array(v) for v in value] if isinstance(value, list) else mx.array(value)
        for name, value in inputs.items()
        if isinstance(value, np.ndarray)
        or (isinstance(value, list) and value and isinstance(value[0], np.ndarray))
    }
