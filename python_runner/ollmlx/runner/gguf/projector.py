"""Checks of projectors: the files of models that see, which turn images into what the model reads.

The library takes what such a file says about itself for true, and ends the process where it is not: at the load, or at
the first image. What would do that in files with the usual tower and projector is refused here by name. Others end the
process at the load, which the host tells.
"""

from __future__ import annotations

import math
from pathlib import Path

from ollmlx.runner.errors import RunnerError, invalid
from ollmlx.runner.gguf.metadata import Metadata, read_metadata

# Pixels of a side, layers, and numbers of a piece: far more than any has.
_MAX_SIDE = 1 << 14
_MAX_LAYERS = 1 << 10
_MAX_WIDTH = 1 << 20
# Parts of a layer of the usual tower that must be there: one of each line.
_PARTS = (("attn_q", "attn_qkv"), ("attn_out",), ("ffn_up", "ffn_up_exps"), ("ffn_down", "ffn_down_exps"))
# Two matrices after the tower, as LLaVA has them.
_MLP = "mlp"


def check(path: Path, model: Metadata, name: str) -> None:
    """Raises INVALID_ARGUMENT for a file that cannot be a projector of that model."""
    try:
        _check(read_metadata(path), model)
    except ValueError as err:
        raise invalid(f"{name} cannot be loaded: its projector is damaged or made wrong: {err}") from err
    except RunnerError as err:
        raise invalid(f"{name} cannot be loaded: its projector: {err.message}") from err


def _check(projector: Metadata, model: Metadata) -> None:
    if projector.architecture != "clip":
        raise ValueError(f"its architecture is {projector.architecture!r}, not 'clip'")
    if not projector.values.get("clip.has_vision_encoder"):
        if projector.values.get("clip.has_audio_encoder"):
            return
        raise ValueError("it has no encoder for images")
    vision = {
        key.removeprefix("clip.vision."): value
        for key, value in projector.values.items()
        if key.startswith("clip.vision.")
    }
    kind = projector.values.get("clip.projector_type") or vision.get("projector_type")
    if not isinstance(kind, str):
        raise ValueError("it names no clip.projector_type")
    layers = _count(vision, "block_count", _MAX_LAYERS, least=0)
    epsilon = vision.get("attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or not math.isfinite(epsilon) or epsilon < 0:
        raise ValueError(f"clip.vision.attention.layer_norm_epsilon is {epsilon}")
    if "v.blk.0.attn_out.weight" not in projector.shapes:
        return
    width = _count(vision, "embedding_length", _MAX_WIDTH)
    heads = _count(vision, "attention.head_count", width)
    if "attention.head_dim" not in vision and width % heads:
        raise ValueError(f"its width of {width} is no multiple of its {heads} heads")
    _check_tower(projector.shapes, layers, width)
    if kind == _MLP:
        side, patch = _count(vision, "image_size", _MAX_SIDE), _count(vision, "patch_size", _MAX_SIDE)
        if patch > side:
            raise ValueError(f"its patches of {patch} pixels are larger than its images of {side}")
        _check_patches(projector.shapes, width, side, patch)
        _check_mlp(projector.shapes, width, model.number("embedding_length"))


def _check_tower(shapes: dict[str, tuple[int, ...]], layers: int, width: int) -> None:
    for layer in range(layers):
        for names in _PARTS:
            if not any(f"v.blk.{layer}.{name}.weight" in shapes for name in names):
                raise ValueError(f"v.blk.{layer}.{names[0]}.weight is missing")
        for part in ("attn_q", "attn_k", "attn_v", "attn_qkv", "ln1", "ln2"):
            _expect(shapes, f"v.blk.{layer}.{part}.weight", 0, width)
        up, down = (shapes.get(f"v.blk.{layer}.{part}.weight") for part in ("ffn_up", "ffn_down"))
        # Older files have their names exchanged.
        if up and down and width not in (up[0], down[0]):
            raise ValueError(f"neither matrix of v.blk.{layer}.ffn takes {width} numbers")
    for name, shape in shapes.items():
        weight = shapes.get(name.removesuffix(".bias") + ".weight", ())
        counted = name.startswith(("v.blk.", "mm.")) and name.endswith(".bias") and 0 < len(weight) <= 2
        if counted and shape[0] != weight[-1]:
            raise ValueError(f"{name} has {shape[0]} numbers, and its weight {weight[-1]} rows")


def _check_patches(shapes: dict[str, tuple[int, ...]], width: int, side: int, patch: int) -> None:
    _require(shapes, "v.patch_embd.weight", "v.position_embd.weight")
    if (shape := shapes["v.patch_embd.weight"]) != (patch, patch, 3, width):
        raise ValueError(f"v.patch_embd.weight has the shape {shape}, not {(patch, patch, 3, width)}")
    _expect(shapes, "v.class_embd", 0, width)
    _expect(shapes, "v.position_embd.weight", 0, width)
    places = (side // patch) ** 2 + ("v.class_embd" in shapes)
    if (rows := shapes["v.position_embd.weight"][-1]) < places:
        raise ValueError(f"v.position_embd.weight has {rows} rows for {places} places")


def _check_mlp(shapes: dict[str, tuple[int, ...]], width: int, wanted: int) -> None:
    _require(shapes, "mm.0.weight", "mm.0.bias", *(["mm.2.bias"] if "mm.2.weight" in shapes else []))
    _expect(shapes, "mm.0.weight", 0, width)
    _expect(shapes, "mm.2.weight", 0, shapes["mm.0.weight"][-1])
    given = (shapes.get("mm.2.weight") or shapes["mm.0.weight"])[-1]
    if given != wanted:
        raise ValueError(
            f"it gives {given} numbers for a piece of an image, and the model takes {wanted}: it is another "
            "model's projector"
        )


def _require(shapes: dict[str, tuple[int, ...]], *names: str) -> None:
    if missing := next((name for name in names if name not in shapes), None):
        raise ValueError(f"{missing} is missing")


def _expect(shapes: dict[str, tuple[int, ...]], name: str, dimension: int, size: int) -> None:
    shape = shapes.get(name)
    if shape is not None and (len(shape) <= dimension or shape[dimension] != size):
        raise ValueError(f"{name} has the shape {shape} and should have {size} at {dimension}")


def _count(vision: dict[str, object], key: str, most: int, *, least: int = 1) -> int:
    value = vision.get(key)
    if not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"clip.vision.{key} is {value}, which is not a number from {least} to {most}")
    return value
