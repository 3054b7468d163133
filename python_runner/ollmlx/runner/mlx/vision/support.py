"""Whether a model sees, from what its files hold; and if it does not, what to tell those who send it images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ollmlx.runner.mlx.vision.families import FAMILIES

INSTALL = 'pip install "ollmlx[vision]"'
# Either says how images become pixels.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# What the names of a vision tower's weights have in them.
_TOWER_WORDS = ("vision", "visual")


def sees(path: Path, config: dict[str, Any]) -> bool:
    """Whether the files hold all that seeing needs. Conversions to text only keep the configuration and drop the
    weights, or the processor."""
    return (
        isinstance(config.get("vision_config"), dict)
        and bool(config["vision_config"])
        and any((path / name).is_file() for name in _PROCESSOR_FILES)
        and any(word in name for name in _weight_names(path) for word in _TOWER_WORDS)
    )


def obstacle(name: str, config: dict[str, Any]) -> str | None:
    """Why a model that sees cannot be shown images here, with the remedy; None if it can."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        return f"{name} cannot be shown images: models of type {model_type} are not supported for it, but {known}"
    if importlib.util.find_spec("mlx_vlm") is None:
        return f"{name} needs the package mlx-vlm to see images, which is not installed; install it with: {INSTALL}"
    return None


def _weight_names(path: Path) -> set[str]:
    names: set[str] = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            names.update(tensors.keys())
    return names
