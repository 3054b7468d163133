"""On a CPU weights are plain float32 and turned, a tuned BLAS comes before MLX's own, and what is slow in MLX is
computed otherwise."""

from __future__ import annotations

import _json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from ollmlx import blas
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.mlxlm.cpu import attention, operations, weights
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_models import make_model

# MLX's own, whatever has been put in their place.
plain = {"rms_norm": operations.plain_rms_norm, "rope": operations.plain_rope}


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
    weights.widen(model, True)
    assert dtypes(model) == {"mlx.core.float32"}
    assert mx.abs(model(mx.array([[1, 2, 3]])) - before).mean().item() < 0.1


def test_quantized_weights_become_plain_if_they_fit(quantized: Path) -> None:
    model = load(quantized)
    count = mlxlm.parameter_count(model)
    before = model(mx.array([[1, 2, 3]])).astype(mx.float32)
    weights.widen(model, True)
    assert dtypes(model) == {"mlx.core.float32"}
    assert mlxlm.weight_bytes(model) == count * 4
    assert mx.abs(model(mx.array([[1, 2, 3]])) - before).mean().item() < 0.1


def test_what_does_not_fit_keeps_its_size(small: Path, quantized: Path) -> None:
    plain = load(small)
    weights.widen(plain, False)
    assert "mlx.core.bfloat16" in dtypes(plain)
    packed = load(quantized)
    weights.widen(packed, False)
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


@pytest.mark.parametrize(
    ("file", "reference"),
    [
        ("/home/mklein/.venv/lib/python3.11/site-packages/mlx_cpu.libs/libblas-bd8a.so.3.10.0", True),
        ("/usr/lib/x86_64-linux-gnu/blas/libblas.so.3", True),
        ("/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3", False),
        ("/opt/intel/mkl/lib/libmkl_rt.so.2", False),
        ("Accelerate", False),
        ("unknown", False),
    ],
)
def test_a_tuned_blas_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, file: str, reference: bool
) -> None:
    monkeypatch.setattr(blas, "in_use", lambda: file)
    assert blas.is_reference() == reference


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
            assert mx.array_equal(operations.rms_norm(x, weight, eps), plain["rms_norm"](x, weight, eps))
        assert mx.array_equal(operations.rms_norm(x, None, 1e-5), plain["rms_norm"](x, None, 1e-5))

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("length", [1, 2, 50])
    @pytest.mark.parametrize("dims", [32, 24])
    @pytest.mark.parametrize("traditional", [False, True])
    def test_rotary_embeddings(self, rows: int, length: int, dims: int, traditional: bool) -> None:
        rope = operations.Rope()
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
        rope = operations.Rope()
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
        operations.discard_broken_libraries()
        assert sorted(f.name for f in directory.iterdir()) == ["source.cpp", "whole.so"]

    def test_a_cpu_computes_with_them(self) -> None:
        assert mlxlm.select_device("cpu") == "cpu"
        assert mx.fast.rms_norm is operations.rms_norm
        assert isinstance(mx.fast.rope, operations.Rope)
        assert mx.fast.scaled_dot_product_attention.plain is attention.scaled_dot_product_attention
        assert nn.Embedding.as_linear is weights.embedding_as_linear


class TestAttention:
    """What NumPy computes is what MLX does."""

    @staticmethod
    def inputs(rows: int, heads: int, groups: int, length: int, total: int) -> list[mx.array]:
        # As models have them: heads are a transposed dimension, and the cache has room for more.
        queries = mx.random.normal((rows, length, heads, 24)).swapaxes(1, 2)
        keys, values = (mx.random.normal((rows, groups, total + 9, w))[..., :total, :] for w in (24, 16))
        return [queries, keys, values]

    @staticmethod
    def masks(rows: int, length: int, total: int) -> list[mx.array | str | None]:
        causal = mx.arange(total - length, total)[:, None] >= mx.arange(total)[None]
        # Rows of a batch begin at different places; what is padding there sees nothing at all.
        padded = causal & (mx.arange(total) >= mx.arange(rows)[:, None] * 3)[:, None, None]
        hidden = mx.where(padded, 0.0, mx.finfo(mx.float32).min)
        everywhere, heads = mx.random.normal((rows, 1, 1, total)), mx.random.normal((6, length, total))
        return [None, "causal", causal, padded, hidden, everywhere, heads]

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
    @pytest.mark.parametrize(("length", "total"), [(1, 1), (1, 40), (7, 7), (7, 60), (300, 300), (290, 600)])
    @pytest.mark.parametrize("least", [0, 1 << 30], ids=["many", "few"])
    def test_it_is_that_of_mlx(
        self,
        monkeypatch: pytest.MonkeyPatch,
        rows: int,
        heads: int,
        groups: int,
        length: int,
        total: int,
        least: int,
    ) -> None:
        monkeypatch.setattr(attention, "_LEAST_SCORES", least)
        monkeypatch.setattr(attention, "_BLOCK", 1000)
        given = self.inputs(rows, heads, groups, length, total)
        for mask in self.masks(rows, length, total):
            if not isinstance(mask, mx.array) or mask.ndim != 3 or mask.shape[0] == heads:
                ours = attention.scaled_dot_product_attention(*given, scale=0.3, mask=mask)
                expected = attention.plain_attention(*given, scale=0.3, mask=mask)
                assert ours.shape == expected.shape
                assert mx.allclose(ours, expected, rtol=1e-4, atol=1e-5)

    def test_more_queries_than_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_LEAST_SCORES", 0)
        given = self.inputs(2, 4, 2, 300, 20)
        ours = attention.scaled_dot_product_attention(*given, scale=0.3, mask="causal")
        expected = attention.plain_attention(*given, scale=0.3, mask="causal")
        assert mx.allclose(ours, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("shapeless", [False, True])
    def test_it_can_be_compiled(self, monkeypatch: pytest.MonkeyPatch, shapeless: bool) -> None:
        """As encoders of mlx-vlm are, where nothing can be computed before all is known."""
        monkeypatch.setattr(attention, "_LEAST_SCORES", 0)
        given = self.inputs(1, 4, 4, 300, 300)
        compiled = mx.compile(
            lambda q, k, v: attention.scaled_dot_product_attention(q * 2, k, v, scale=0.3),
            shapeless=shapeless,
        )
        expected = attention.plain_attention(*given, scale=0.6)
        for _ in range(2):
            assert mx.allclose(compiled(*given), expected, rtol=1e-4, atol=1e-5)

    def test_scores_of_all_queries_are_not_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_LEAST_SCORES", 0)
        given = self.inputs(1, 4, 4, 2048, 2048)
        mx.eval(given)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(attention.scaled_dot_product_attention(*given, scale=0.3))
        scores = 4 * 2048 * 2048 * 4
        assert mx.get_peak_memory() - before < scores / 2

    def test_what_is_small_or_otherwise_is_left_to_mlx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        monkeypatch.setattr(attention, "_attend", lambda *given: asked.append(given))
        given = self.inputs(1, 2, 2, 8, 8)
        attention.scaled_dot_product_attention(*given, scale=1.0)
        monkeypatch.setattr(attention, "_LEAST_SCORES", 0)
        attention.scaled_dot_product_attention(*(a.astype(mx.bfloat16) for a in given), scale=1.0)
        attention.scaled_dot_product_attention(*given, scale=1.0, sinks=mx.ones((2,)))
        assert not asked
        attention.scaled_dot_product_attention(*given, scale=1.0)
        assert len(asked) == 1


class TestTurnedWeights:
    @pytest.fixture(params=[True, False], ids=["reference", "tuned"])
    def reference(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
        monkeypatch.setattr(weights, "_reference_blas", lambda: request.param)
        return request.param

    @pytest.mark.parametrize("shape", [(5, 7), (32, 16), (33, 40), (3, 20, 6)], ids=str)
    def test_numbers_stay_and_strides_change(self, reference: bool, shape: tuple[int, ...]) -> None:
        weight = mx.random.normal(shape)
        turned = weights.turned(weight)
        assert turned.shape == shape
        assert mx.array_equal(turned, weight)
        assert (turned is not weight) == reference, "a tuned BLAS gains from large ones only"
        if reference:
            assert memoryview(turned).strides[-2:] == (4, 4 * shape[-2])
            assert weights.turned(turned) is turned

    @pytest.mark.parametrize(("inputs", "gains"), [(1024, True), (1000, False)])
    def test_a_tuned_blas_gains_where_outputs_are_pages_apart(
        self, monkeypatch: pytest.MonkeyPatch, inputs: int, gains: bool
    ) -> None:
        monkeypatch.setattr(weights, "_reference_blas", lambda: False)
        assert weights._gains(mx.zeros((1100, inputs))) == gains

    def test_other_types_and_vectors_stay(self, reference: bool) -> None:
        for weight in (mx.ones((4, 4), dtype=mx.bfloat16), mx.ones((1, 9)), mx.ones((9, 1)), mx.ones((9,))):
            assert weights.turned(weight) is weight

    def test_layers_compute_the_same(self, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "_reference_blas", lambda: True)
        monkeypatch.setattr(nn.Embedding, "as_linear", weights.embedding_as_linear)
        model = load(small)
        weights.widen(model, True)
        tokens = mx.array([[5, 3, 9, 1]])
        before = model(tokens)
        weights.turn(model)
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        assert layers
        assert all(memoryview(m.weight).strides[-2] == 4 for m in layers)
        assert mx.allclose(model(tokens), before, rtol=1e-4, atol=1e-5)

    def test_an_embedding_is_turned_when_it_is_multiplied_with(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "_reference_blas", lambda: True)
        embedding, x = nn.Embedding(40, 8), mx.random.normal((2, 8))
        rows = embedding(mx.array([3, 39]))
        expected = weights.plain_as_linear(embedding, x)
        assert mx.allclose(weights.embedding_as_linear(embedding, x), expected, atol=1e-5)
        assert memoryview(embedding.weight).strides[-2] == 4
        assert mx.array_equal(embedding(mx.array([3, 39])), rows)
