"""On a CPU weights are computed in float32, quantized ones plain, and a tuned BLAS comes before MLX's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from ollmlx import blas
from ollmlx.runner.mlx import mlxlm
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_models import make_model


def dtypes(model: object) -> set[str]:
    return {str(a.dtype) for _, a in tree_flatten(model.parameters())}


def load(path: Path) -> object:
    return mlxlm.load_weights(path, lambda done, total: None)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A model in bfloat16."""
    path = make_model(tmp_path / "small", "llama")
    weights = {k: v.astype(mx.bfloat16) for k, v in mx.load(str(path / "model.safetensors")).items()}
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    return path


@pytest.fixture
def quantized(small: Path, tmp_path: Path) -> Path:
    import mlx_lm

    mlx_lm.convert(str(small), str(tmp_path / "q4"), quantize=True, q_bits=4, q_group_size=32)
    return tmp_path / "q4"


def test_small_types_become_float32(small: Path) -> None:
    model = load(small)
    assert "mlx.core.bfloat16" in dtypes(model)
    before = model(mx.array([[1, 2, 3]]))
    mlxlm.widen(model, True)
    assert dtypes(model) == {"mlx.core.float32"}
    assert mx.abs(model(mx.array([[1, 2, 3]])) - before).mean().item() < 0.1


def test_quantized_weights_become_plain_if_they_fit(quantized: Path) -> None:
    model = load(quantized)
    count = mlxlm.parameter_count(model)
    before = model(mx.array([[1, 2, 3]])).astype(mx.float32)
    mlxlm.widen(model, True)
    assert dtypes(model) == {"mlx.core.float32"}
    assert mlxlm.weight_bytes(model) == count * 4
    assert mx.abs(model(mx.array([[1, 2, 3]])) - before).mean().item() < 0.1


def test_what_does_not_fit_keeps_its_size(small: Path, quantized: Path) -> None:
    plain = load(small)
    mlxlm.widen(plain, False)
    assert "mlx.core.bfloat16" in dtypes(plain)
    packed = load(quantized)
    mlxlm.widen(packed, False)
    assert dtypes(packed) == {"mlx.core.uint32", "mlx.core.float32"}, (
        "only scales, biases and norms are widened"
    )


def test_a_runner_has_the_tuned_blas_if_there_is_one(tmp_path: Path) -> None:
    library = blas.find()
    if library is None:
        pytest.skip("no tuned BLAS on this machine")
    with RunnerProcess() as process:
        process.load(make_model(tmp_path / "m", "llama"))
        assert str(library.resolve()) in Path(f"/proc/{process.process.pid}/maps").read_text()


@pytest.mark.parametrize(("value", "expected"), [("0", None), ("/nowhere/libblas.so", None)])
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, value: str, expected: Path | None) -> None:
    monkeypatch.setenv(blas.VARIABLE, value)
    assert blas.find() is expected


def test_a_library_that_does_not_load_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "libblas.so.3"
    broken.write_bytes(b"\x7fELF and no more")
    monkeypatch.setenv(blas.VARIABLE, str(broken))
    assert blas.find() is None


def test_a_process_restarts_once_with_its_arguments(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux only")
    # Any library will do to be preloaded.
    library = next(
        line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom ollmlx import blas\nblas.restart_with()\nprint(os.getpid(), *sys.argv[1:])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {blas.VARIABLE: library}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), "a b", "c"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.communicate()[0].split(" ", 1) == [str(process.pid), "a b c\n"]
