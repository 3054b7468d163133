"""What is told about architectures without importing mlx-lm is what mlx-lm itself would do."""

from __future__ import annotations

from pathlib import Path

import mlx_lm.models
import pytest
from mlx_lm import utils

from ollmlx.hub import architectures
from tests.support.tiny_models import ARCHITECTURES

MODULES = sorted(p.stem for p in Path(mlx_lm.models.__path__[0]).glob("*.py"))
# Importing all of them takes long. Helpers are among these, and modules that take their model from another one.
SOME = [*MODULES[::8], "cache", "base", "rope_utils", "switch_layers", "olmo"]


@pytest.mark.parametrize(
    "model_type", [*SOME, "mistral", "kimi_k2", "mystery", "../llama", "models.llama", ""]
)
def test_known_and_unknown(model_type: str) -> None:
    try:
        utils._get_classes({"model_type": model_type})
        known = True
    except (ValueError, AttributeError, ImportError, TypeError, SystemExit):
        known = False
    assert architectures.supports(model_type) == known or model_type in architectures.ENCODERS


def test_no_other_module_ends_the_process() -> None:
    texts = {name: (Path(mlx_lm.models.__path__[0]) / f"{name}.py").read_text() for name in MODULES}
    assert {name for name, text in texts.items() if "exit(" in text} == set(architectures._NEEDED)


def test_architectures_beside_types() -> None:
    for (model_type, architecture), module in utils.MODEL_ARCHITECTURE_REMAPPING.items():
        assert architectures.supports(model_type, [architecture]) == (module in MODULES)


def test_what_the_tests_pull_is_known() -> None:
    assert all(architectures.supports(model_type) for model_type in ARCHITECTURES)
    assert architectures.supports("bert") and architectures.engine().startswith("mlx-lm ")
