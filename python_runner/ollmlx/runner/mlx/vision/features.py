"""What the vision tower made of images, kept for other prompts that show them."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import psutil

# Share of the free memory that features may take, and the most they take: a photograph takes some megabytes.
_MEMORY_SHARE = 1 / 32
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Features:
    """Of one image, or of a tile of one: the embeddings of its tokens, and for some models what is added to them in the
    first layers."""

    layers: list[Any]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


class FeatureCache:
    """Bounded by bytes, the least recently used go first. Belongs to the engine's thread."""

    def __init__(self, max_bytes: int | None = None) -> None:
        if max_bytes is None:
            max_bytes = min(int(psutil.virtual_memory().available * _MEMORY_SHARE), _MAX_BYTES)
        self._max_bytes = max_bytes
        self._kept: collections.OrderedDict[str, Features] = collections.OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> Features | None:
        features = self._kept.get(key)
        if features is not None:
            self._kept.move_to_end(key)
        return features

    def put(self, key: str, features: Features) -> None:
        old = self._kept.pop(key, None)
        self.bytes += features.nbytes - (old.nbytes if old is not None else 0)
        self._kept[key] = features
        while self.bytes > self._max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0
