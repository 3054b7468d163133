"""On a CPU weights are computed in float32, quantized ones plain, and a tuned BLAS comes before MLX's own."""

from __future__ import annotations

import _json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

from ollmlx import blas
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.mlxlm import cpu
from ollmlx.runner.mlx.mlxlm.caches import share_positions
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_models import make_model

# MLX's own, whatever has been put in their place.
plain = {"rms_norm": cpu.plain_rms_norm, "rope": cpu.plain_rope}


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


class TestCompiledOperations:
    """What is computed on a CPU in place of MLX's own norms and rotary embeddings is the same to the last bit."""

    @pytest.mark.parametrize("shape", [(1, 1, 160), (8, 1, 384), (3, 4, 7, 32), (2, 50, 160)], ids=str)
    @pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
    def test_norms(self, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        x, weight = (mx.random.normal(s).astype(dtype) for s in (shape, shape[-1:]))
        for eps in (1e-5, 1e-6):
            assert mx.array_equal(cpu.rms_norm(x, weight, eps), plain["rms_norm"](x, weight, eps))
        assert mx.array_equal(cpu.rms_norm(x, None, 1e-5), plain["rms_norm"](x, None, 1e-5))

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("length", [1, 2, 50])
    @pytest.mark.parametrize("dims", [32, 24])
    @pytest.mark.parametrize("traditional", [False, True])
    def test_rotary_embeddings(self, rows: int, length: int, dims: int, traditional: bool) -> None:
        rope = cpu.Rope()
        frequencies = mx.exp(mx.arange(dims // 2) * 0.2)
        for options in (
            {"base": 10000.0, "scale": 1.0},
            {"base": 1e6, "scale": 0.25},
            {"base": None, "scale": 1.0, "freqs": frequencies},
        ):
            for offset in (0, 1999, mx.array(77), mx.array([5 * i - 7 for i in range(rows)])):
                x = mx.random.normal((rows, 4, length, 32))
                given = {"traditional": traditional, "offset": offset, **options}
                expected = plain["rope"](x, dims, **given)
                # The second time with angles that are known.
                for _ in range(2):
                    assert mx.array_equal(rope(x, dims, **given), expected)

    def test_angles_are_of_the_offset_at_hand(self) -> None:
        """An array in the place of one that is gone has its id and other values."""
        rope = cpu.Rope()
        x = mx.random.normal((2, 1, 1, 32))
        for i in range(50):
            given = {"traditional": False, "base": 10000.0, "scale": 1.0, "offset": mx.array([i, 3 * i])}
            assert mx.array_equal(rope(x, 32, **given), plain["rope"](x, 32, **given))

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the format of Linux")
    def test_a_library_that_was_not_written_to_its_end_goes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        directory = tmp_path / "mlx" / "1.0" / "cpu"
        directory.mkdir(parents=True)
        complete = Path(_json.__file__).read_bytes()
        for name, content in (
            ("whole.so", complete),
            ("cut.so", complete[:-1]),
            ("empty.so", b""),
            ("zeros.so", bytes(4096)),
            ("source.cpp", b"int"),
        ):
            (directory / name).write_bytes(content)
        cpu.discard_broken_libraries()
        assert sorted(f.name for f in directory.iterdir()) == ["source.cpp", "whole.so"]

    def test_layers_share_their_positions(self) -> None:
        caches = [mlx_cache.BatchKVCache([0, 2]) for _ in range(3)]
        for _ in range(2):
            share_positions(caches)
            assert all(c.offset is caches[0].offset for c in caches)
            for cache in caches:
                cache.update_and_fetch(mx.ones((2, 1, 1, 8)), mx.ones((2, 1, 1, 8)))
        assert [c.offset.tolist() for c in caches] == [[2, 0]] * 3
        others = [mlx_cache.BatchKVCache([0]), mlx_cache.BatchRotatingKVCache(8, [0])]
        share_positions(others)
        assert others[0].offset is not others[1].offset

    def test_a_cpu_computes_with_them(self) -> None:
        assert mlxlm.select_device("cpu") == "cpu"
        assert mx.fast.rms_norm is cpu.rms_norm
        assert isinstance(mx.fast.rope, cpu.Rope)
