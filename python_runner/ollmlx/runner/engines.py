"""The engines and tasks a runner process can be started with, by name."""

from __future__ import annotations

import importlib
import importlib.util

from ollmlx.runner.engine import Engine
from ollmlx.runner.task import Task

# Name of the engine: module, class, and the package it cannot do without.
ENGINES = {
    "mlx": ("ollmlx.runner.mlx.engine", "MLXEngine", "mlx_lm"),
    "convert": ("ollmlx.runner.mlx.convert", "ConvertTask", "mlx_lm"),
    "gguf": ("ollmlx.runner.gguf.engine", "GGUFEngine", "xllamacpp"),
    "hub": ("ollmlx.hub.task", "HubTask", "huggingface_hub"),
}


class EngineMissingError(Exception):
    """The engine's package is not installed for this Python."""


def make_engine(name: str) -> Engine | Task:
    """Make an idle engine or a task. Its heavy imports happen later, on its own thread."""
    module, attribute, package = ENGINES[name]
    if importlib.util.find_spec(package) is None:
        raise EngineMissingError(
            f"the {name} engine needs the Python package {package}, which this Python does not have; "
            f"install it with `pip install {package.replace('_', '-')}` "
            "or point OLLMLX_PYTHON at a Python that has it"
        )
    return getattr(importlib.import_module(module), attribute)()
