"""The parts of mlx-vlm that ollmlx relies on are as ollmlx expects them; mlxvlm is the one package to mend."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ollmlx.runner.mlx.vision.families import FAMILIES

pytest.importorskip("mlx_vlm", reason='needs the extra: pip install "ollmlx[vision]"')

REPOSITORY = Path(__file__).resolve().parents[2]


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_pinned_version_is_the_installed_one() -> None:
    pinned = next(
        line.split("==")[1].strip('"] ')
        for line in (REPOSITORY / "pyproject.toml").read_text().splitlines()
        if '"mlx-vlm==' in line
    )
    assert metadata.version("mlx-vlm") == pinned


def test_loading_takes_a_directory_and_can_be_lazy() -> None:
    from mlx_vlm import utils

    assert parameters(utils.load_model) == ["model_path", "lazy", "kwargs"]
    # What runs files of the model: mlxvlm.load_model refuses it.
    assert 'config.get("model_file")' in inspect.getsource(utils.get_model_and_args)


def test_embeddings_come_with_what_the_language_model_needs() -> None:
    from mlx_vlm.models.base import InputEmbeddingsFeatures, LanguageModelOutput

    assert "inputs_embeds" in InputEmbeddingsFeatures(None).to_dict()
    assert "logits" in LanguageModelOutput.__dataclass_fields__


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_has_what_is_called(family: str) -> None:
    package = importlib.import_module(f"mlx_vlm.models.{family}")
    assert {"input_ids", "pixel_values"} <= set(parameters(package.Model.get_input_embeddings))
    called = parameters(package.LanguageModel.__call__)
    assert {"inputs", "inputs_embeds", "cache", "kwargs"} <= set(called)
    positioned = hasattr(package.LanguageModel, "get_rope_index")
    source = inspect.getsource(package.LanguageModel.__call__)
    # Where positions are not numbers of tokens, they are given, and taken before all that the model remembers.
    assert ('kwargs.pop("position_ids"' in source or "position_ids" in called) == positioned
    if positioned:
        expected = ["self", "input_ids", "image_grid_thw", "video_grid_thw", "attention_mask"]
        assert parameters(package.LanguageModel.get_rope_index) == expected


@pytest.mark.slow
def test_it_needs_none_of_its_large_dependencies() -> None:
    """Those who cannot afford the extra can install mlx-vlm without its dependencies: docs/vision.md says so."""
    absent = ["cv2", "pandas", "datasets", "pyarrow", "mlx_audio", "fastapi", "uvicorn", "miniaudio", "torch"]
    modules = ["ollmlx.runner.mlx.mlxvlm", *(f"mlx_vlm.models.{family}" for family in sorted(FAMILIES))]
    program = f"""
import importlib, json, sys
for name in {absent!r}:
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps(sorted(name for name in {absent!r} if sys.modules.get(name) is not None)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
