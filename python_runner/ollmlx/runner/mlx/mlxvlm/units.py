"""The images of a prompt, taken apart into what a vision tower can compute by itself: images, or their tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

# What a processor gives of each unit, along an axis of its own, and what it gives of the prompt.
_OF_UNITS = frozenset(
    {"pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes", "spatial_shapes"}
)
_PIXELS = frozenset({"pixel_values", "pixel_attention_mask"})
_OF_PROMPT = frozenset({"mm_token_type_ids"})


class Units:
    """Made on the thread that prepares images, out of a processor's NumPy arrays or lists of them. MLX's arrays are
    made on the engine's thread, when they are asked for.

    The units are in the order of their tokens. What cannot be taken apart with certainty is one unit."""

    def __init__(
        self, inputs: Mapping[str, Any], tokens: Sequence[int], image_token: int, digests: Sequence[str]
    ) -> None:
        """`image_token` stands in a prompt's `tokens` for what is in its images, which `digests` identify."""
        self.image_token = image_token
        count = tokens.count(image_token)
        self._inputs = {name: value for name, value in inputs.items() if _is_array(value)}
        weights = _weights(self._inputs)
        shares = [weight * count / sum(weights) for weight in weights]
        self._apart = all(share.is_integer() and share > 0 for share in shares)
        # How many tokens stand for each.
        self.tokens = [int(share) for share in shares] if self._apart else [count]
        self._ends = np.cumsum(weights)
        if not self._apart:
            self.keys = [" ".join(digests)]
        elif len(self.tokens) == len(digests):
            self.keys = [f"{digest}:{n}" for digest, n in zip(digests, self.tokens, strict=True)]
        else:
            self.keys = [self._digest(i) for i in range(len(self.tokens))]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def stacked(self) -> bool:
        """Whether images have one size, so that towers give features with an axis for the images."""
        pixels = self._inputs["pixel_values"]
        return isinstance(pixels, np.ndarray) and pixels.ndim == 4 and "image_sizes" not in self._inputs

    def take(self, first: int, last: int) -> dict[str, Any]:
        """What a vision tower needs of the units from `first` to before `last`."""
        if not self._apart:
            return _to_arrays({n: v for n, v in self._inputs.items() if n not in _OF_PROMPT})
        return _to_arrays(self._slice(first, last))

    def of_prompt(self) -> dict[str, Any]:
        """What a language model needs to know of all images."""
        return _to_arrays({name: value for name, value in self._inputs.items() if name not in _PIXELS})

    def _slice(self, first: int, last: int) -> dict[str, Any]:
        taken = {name: self._inputs[name] for name in _OF_UNITS & self._inputs.keys()}
        pixels = taken["pixel_values"]
        if "image_grid_thw" in taken:
            begin = self._ends[first - 1] if first else 0
            taken["pixel_values"] = pixels[begin : self._ends[last - 1]]
            taken["image_grid_thw"] = taken["image_grid_thw"][first:last]
            return taken
        if _has_tiles(pixels):
            return {name: value[:, first:last] for name, value in taken.items()}
        taken = {name: value[first:last] for name, value in taken.items()}
        if "image_sizes" in taken:
            # Without what only the largest image needs.
            height, width = taken["image_sizes"].max(axis=0)
            taken["pixel_values"] = taken["pixel_values"][..., :height, :width]
        if isinstance(pixels, list) and last - first == 1:
            # Several are a list if they differ in size, one never is.
            taken["pixel_values"] = pixels[first][None]
        return taken

    def _digest(self, unit: int) -> str:
        """Of which image a tile is, processors do not say."""
        digest = hashlib.blake2b(digest_size=32)
        for name, value in sorted(self._slice(unit, unit + 1).items()):
            digest.update(f"{name} {value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()


def _weights(inputs: Mapping[str, Any]) -> list[int]:
    """Of each unit, what its number of tokens is proportional to."""
    pixels = inputs["pixel_values"]
    if not inputs.keys() <= _OF_UNITS | _OF_PROMPT:
        return [1]
    for name in ("image_grid_thw", "image_sizes", "spatial_shapes"):
        if name in inputs:
            return np.prod(inputs[name].astype(np.int64), axis=1).tolist()
    if isinstance(pixels, list):
        return [p.shape[-2] * p.shape[-1] for p in pixels]
    return [1] * pixels.shape[1 if _has_tiles(pixels) else 0]


def _has_tiles(pixels: Any) -> bool:
    """Whether the tiles of all images are one axis of several."""
    return isinstance(pixels, np.ndarray) and pixels.ndim == 5


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], np.ndarray)
    )


def _to_arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [mx.array(v) for v in value] if isinstance(value, list) else mx.array(value)
        for name, value in inputs.items()
    }
