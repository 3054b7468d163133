"""Tiny projectors (mmproj files), written at test time: a CLIP tower as LLaVA 1.5 has it, with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny_ggufs import WIDTH, write

SIDE, PATCH, TOWER, TOWER_FEED_FORWARD, TOWER_LAYERS, TOWER_HEADS = 32, 8, 32, 64, 2, 2
# Tokens that an image takes in a prompt, whatever its size.
IMAGE_TOKENS = (SIDE // PATCH) ** 2


def make_projector(
    path: Path,
    *,
    width: int = WIDTH,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> Path:
    """Write a projector for models of that width to `path` and return it. `metadata` and `tensors` add some or replace
    them; a tensor that is None is left out."""
    keys = {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": False,
        "clip.vision.image_size": SIDE,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": TOWER,
        "clip.vision.feed_forward_length": TOWER_FEED_FORWARD,
        "clip.vision.block_count": TOWER_LAYERS,
        "clip.vision.projection_dim": width,
        "clip.vision.attention.head_count": TOWER_HEADS,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.25, 0.25, 0.25],
    }
    own = dict(_tensors(width, seed)) | (tensors or {})
    kept = ((name, array) for name, array in own.items() if array is not None)
    return write(path, "clip", {**keys, **(metadata or {})}, kept)


def _tensors(width: int, seed: int) -> Iterable[tuple[str, np.ndarray]]:
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))

    def norm(name: str) -> Iterable[tuple[str, np.ndarray]]:
        yield f"{name}.weight", np.ones(TOWER, np.float32)
        yield f"{name}.bias", np.zeros(TOWER, np.float32)

    yield "v.class_embd", random.standard_normal(TOWER).astype(np.float32)
    yield "v.patch_embd.weight", weights(TOWER, 3, PATCH, PATCH)
    yield "v.position_embd.weight", random.standard_normal((IMAGE_TOKENS + 1, TOWER)).astype(np.float32) / 4
    yield from norm("v.pre_ln")
    for layer in range(TOWER_LAYERS):
        yield from norm(f"v.blk.{layer}.ln1")
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield f"v.blk.{layer}.{part}.weight", weights(TOWER, TOWER)
            yield f"v.blk.{layer}.{part}.bias", np.zeros(TOWER, np.float32)
        yield from norm(f"v.blk.{layer}.ln2")
        yield f"v.blk.{layer}.ffn_up.weight", weights(TOWER_FEED_FORWARD, TOWER)
        yield f"v.blk.{layer}.ffn_up.bias", np.zeros(TOWER_FEED_FORWARD, np.float32)
        yield f"v.blk.{layer}.ffn_down.weight", weights(TOWER, TOWER_FEED_FORWARD)
        yield f"v.blk.{layer}.ffn_down.bias", np.zeros(TOWER, np.float32)
    yield from norm("v.post_ln")
    yield "mm.0.weight", weights(width, TOWER)
    yield "mm.0.bias", np.zeros(width, np.float32)
    yield "mm.2.weight", weights(width, width)
    yield "mm.2.bias", np.zeros(width, np.float32)
