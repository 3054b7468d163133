"""Which architectures the engine knows, told from mlx-lm's files without importing it, which would take seconds."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ollmlx.runner.mlx.embedding.modules import ENCODERS

# Packages that a module of mlx-lm needs beside its own; without them its import ends the process.
_NEEDED = {"olmo": "hf_olmo"}
# What may become part of a path.
_NAME = re.compile(r"[A-Za-z0-9_-]+")
# What a module of an architecture has, in one of these forms; others are helpers.
_MODEL = re.compile(r"^(class Model\b|from .* import .*\bModel\b|Model = )", re.MULTILINE)


def engine() -> str:
    """What the answer of `supports` is about."""
    return f"mlx-lm {metadata.version('mlx-lm')}"


def supports(model_type: str, architectures: Sequence[str] = ()) -> bool:
    """Whether mlx-lm, or our own embedding code, has a module for a configuration."""
    if model_type in ENCODERS:
        return True
    root, by_type, by_architecture = _mlx_lm()
    for architecture in architectures:
        if (model_type, architecture) in by_architecture:
            model_type = by_architecture[model_type, architecture]
            break
    else:
        model_type = by_type.get(model_type, model_type)
    if not _NAME.fullmatch(model_type):
        return False
    if model_type in _NEEDED and importlib.util.find_spec(_NEEDED[model_type]) is None:
        return False
    file = root / "models" / f"{model_type}.py"
    return (file.is_file() and "\nclass ModelArgs" in file.read_text()) or (
        root / "models" / model_type
    ).is_dir()


@functools.cache
def _mlx_lm() -> tuple[Path, dict[str, str], dict[tuple[str, str], str]]:
    """Where mlx-lm is, and its tables of other names for architectures."""
    spec = importlib.util.find_spec("mlx_lm")
    root = Path(next(iter(spec.submodule_search_locations)))
    tables: dict[str, Any] = {"MODEL_REMAPPING": {}, "MODEL_ARCHITECTURE_REMAPPING": {}}
    for node in ast.parse((root / "utils.py").read_text()).body:
        name = (
            node.targets[0].id
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            else ""
        )
        if name in tables:
            tables[name] = ast.literal_eval(node.value)
    return root, tables["MODEL_REMAPPING"], tables["MODEL_ARCHITECTURE_REMAPPING"]
