"""Vectors against what PyTorch gives for the same weights, and what modules a model's files may ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.embedding import modules
from ollmlx.runner.mlx.embedding.embedder import Embedder, load_backbone, make_embedder
from tests.support.embedding_models import reference, write_dense, write_modules, write_tiny
from tests.support.tiny_models import ARCHITECTURES

TINY: dict[str, Any] = reference()["tiny"]


def load(path: Path) -> Embedder:
    config = mlxlm.load_config(path)
    model = load_backbone(path, config, lambda done, total: None)
    return make_embedder(mlxlm.LoadedModel(model, None, config), path)


def vectors(embedder: Embedder, rows: list[list[int]], columns: int = 1000) -> np.ndarray:
    *pieces, last = embedder.compute(rows, lambda: columns)
    assert all(piece is None for piece in pieces)
    return last


@pytest.mark.parametrize("name", TINY)
def test_hidden_states_and_pooling_are_those_of_pytorch(tmp_path: Path, name: str) -> None:
    case = TINY[name]
    path = write_tiny(tmp_path / "m", case)
    for mode in modules.POOLING_MODES:
        write_modules(
            path, {v: k for k, v in modules.POOLING_KEYS.items()}[mode].removeprefix("pooling_mode_")
        )
        embedder = load(path)
        want = np.array(case["vectors"][mode])
        together = vectors(embedder, case["rows"])
        np.testing.assert_allclose(together, want, atol=2e-5, rtol=1e-4, err_msg=mode)
        alone = np.concatenate([vectors(embedder, [row]) for row in case["rows"]])
        np.testing.assert_allclose(together, alone, atol=1e-5, err_msg=mode)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_checkpoints_of_other_tasks_and_old_names_are_read(tmp_path: Path, name: str) -> None:
    case = TINY[name]
    path = write_tiny(tmp_path / "m", case)
    prefix = {"bert": "bert.", "modernbert": "model."}[name]
    weights = {prefix + key: array for key, array in mx.load(str(path / "model.safetensors")).items()}
    if name == "bert":
        for key in [k for k in weights if "LayerNorm" in k]:
            weights[key.replace(".weight", ".gamma").replace(".bias", ".beta")] = weights.pop(key)
        weights["bert.embeddings.position_ids"] = mx.arange(32)[None]
        weights["cls.predictions.bias"] = mx.zeros(40)
    else:
        weights["head.dense.weight"] = weights["decoder.bias"] = mx.zeros((4, 4))
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    got = vectors(load(path), case["rows"])
    np.testing.assert_allclose(got, case["vectors"]["mean"], atol=2e-5, rtol=1e-4)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m", TINY["bert"])
    weights = mx.load(str(path / "model.safetensors"))
    del weights["encoder.layer.1.output.dense.weight"]
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    with pytest.raises(ValueError, match=r"layers\.1\.down\.weight"):
        load(path)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_checkpoints_stay_close(tmp_path: Path, bits: int) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 64}
    case = {"config": TINY["bert"]["config"] | wide, "rows": TINY["bert"]["rows"]}
    swap = {16: 64, 24: 64}
    shapes = TINY["bert"]["weights"].items()
    case["weights"] = {name: [swap.get(n, n) for n in shape] for name, shape in shapes}
    plain = write_tiny(tmp_path / "plain", case)
    want = vectors(load(plain), case["rows"])

    # Packed under the checkpoint's names, as converters do.
    packed = {}
    for key, array in mx.load(str(plain / "model.safetensors")).items():
        if array.ndim < 2:
            packed[key] = array
            continue
        base = key.removesuffix(".weight")
        packed[key], packed[f"{base}.scales"], packed[f"{base}.biases"] = mx.quantize(array, 64, bits)
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    mx.save_safetensors(str(quantized / "model.safetensors"), packed)
    config = case["config"] | {"quantization": {"group_size": 64, "bits": bits}}
    (quantized / "config.json").write_text(json.dumps(config))
    got = vectors(load(quantized), case["rows"])
    cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > {4: 0.8, 8: 0.999}[bits], cosine
    assert not np.allclose(got, want, atol=1e-5), "nothing was quantized"


def test_encoders_without_a_word_on_pooling_take_the_mean_and_decoders_the_last_token(tmp_path: Path) -> None:
    for name, mode in (("bert", "mean"), ("modernbert", "mean"), ("qwen3", "lasttoken")):
        case = TINY[name]
        got = vectors(load(write_tiny(tmp_path / name, case)), case["rows"])
        np.testing.assert_allclose(got, case["vectors"][mode], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["mean", "lasttoken", "max"])
def test_long_rows_of_decoders_are_computed_in_chunks(tmp_path: Path, mode: str) -> None:
    case = TINY["qwen3"]
    path = write_modules(
        write_tiny(tmp_path / "m", case), {"mean": "mean_tokens", "max": "max_tokens"}.get(mode, mode)
    )
    embedder = load(path)
    pieces = list(embedder.compute(case["rows"], lambda: 7))
    assert len(pieces) == 5 and pieces[:-1] == [None] * 4, "30 columns in chunks of 7"
    np.testing.assert_allclose(pieces[-1], case["vectors"][mode], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_of_decoder_gives_the_same_alone_together_and_in_chunks(
    tiny_model: Callable[[str], Path], architecture: str
) -> None:
    embedder = load(tiny_model(architecture))
    rows = [[(11 * i + r) % 250 for i in range(n)] for r, n in enumerate((70, 41, 3))]
    together = vectors(embedder, rows)
    assert np.isfinite(together).all() and np.abs(together).max() > 0
    assert together.shape == (3, 64), "the width of the hidden states, not of the vocabulary"
    alone = np.concatenate([vectors(embedder, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-4 * np.abs(alone).max())
    chunked = vectors(embedder, rows, columns=16)
    np.testing.assert_allclose(chunked, alone, atol=1e-4 * np.abs(alone).max())


# ---- modules


def test_dense_and_normalize_follow_the_pooling(tmp_path: Path) -> None:
    case = TINY["bert"]
    matrix = np.linspace(-1, 1, 5 * 16).reshape(5, 16)
    path = write_modules(write_tiny(tmp_path / "m", case), "mean_tokens", dense=matrix, normalize=True)
    want = np.tanh(np.array(case["vectors"]["mean"]) @ matrix.T)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(load(path), case["rows"]), want, atol=2e-5)


def test_several_poolings_are_joined(tmp_path: Path) -> None:
    case = TINY["bert"]
    path = write_modules(write_tiny(tmp_path / "m", case), "mean_tokens")
    config = {
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": True,
        "pooling_mode_max_tokens": False,
    }
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    want = np.concatenate([case["vectors"]["cls"], case["vectors"]["mean"]], axis=1)
    np.testing.assert_allclose(vectors(load(path), case["rows"]), want, atol=2e-5, rtol=1e-4)
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    got = vectors(load(path), case["rows"])
    np.testing.assert_allclose(got, case["vectors"]["lasttoken"], atol=2e-5, rtol=1e-4)


def test_the_shorter_of_the_limits_holds(tmp_path: Path) -> None:
    for name, positions in (
        ("bert", 32),
        ("roberta", 32),
        ("mpnet", 160),
        ("modernbert", 32),
        ("distilbert", 32),
    ):
        path = write_tiny(tmp_path / name, TINY[name])
        assert load(path).max_tokens == positions, name
        assert load(write_modules(path, "mean_tokens", max_tokens=20)).max_tokens == 20
        assert load(write_modules(path, "mean_tokens", max_tokens=999)).max_tokens == positions
    assert load(write_tiny(tmp_path / "qwen3", TINY["qwen3"])).max_tokens is None


def _pooling(path: Path, config: Any) -> None:
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))


def _module(model: Path, **module: Any) -> None:
    listed = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([*listed, module]))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an unknown module": (lambda p: _module(p, type="x.models.LSTM", path="2_LSTM"), "module 'LSTM' in 2_LSTM"),
    "the model elsewhere": (lambda p: _module(p, type="x.Transformer", path="0_T"), "module 'Transformer' in 0_T"),
    "a path out of the model": (lambda p: _module(p, type="x.Pooling", path="../../etc"), "not within the model"),
    "an absolute path": (lambda p: _module(p, type="x.Dense", path="/etc"), "not within the model"),
    "an unknown pooling": (lambda p: _pooling(p, {"pooling_mode_median": True}), "pooling_mode_median"),
    "an unknown named pooling": (lambda p: _pooling(p, {"pooling_mode": "median"}), "'median'"),
    "pooling that is a list": (lambda p: _pooling(p, []), "not a JSON object"),
    "no pooling file": (lambda p: (p / "1_Pooling" / "config.json").unlink(), "cannot be read"),
    "modules that are no JSON": (lambda p: (p / "modules.json").write_text("[{"), "modules.json is not valid JSON"),
    "deep JSON": (lambda p: (p / "modules.json").write_text("[" * 100_000), "modules.json is not valid JSON"),
    "modules that are numbers": (lambda p: (p / "modules.json").write_text("[1]"), "not a list of modules"),
    "a huge file": (lambda p: (p / "modules.json").write_text("[" + " " * (1 << 20)), "larger than"),
    "a negative limit": (
        lambda p: (p / "sentence_bert_config.json").write_text('{"max_seq_length": -1}'),
        "max_seq_length must be a positive number",
    ),
    "dense without weights": (
        lambda p: (write_dense(p / "2_Dense", np.eye(16)), (p / "2_Dense" / "model.safetensors").unlink(),
                   _module(p, type="x.Dense", path="2_Dense")),
        "2_Dense/model.safetensors is missing",
    ),
    "dense of another width": (
        lambda p: (write_dense(p / "2_Dense", np.eye(4)), _module(p, type="x.Dense", path="2_Dense")),
        "takes vectors of 4 dimensions",
    ),
    "dense with an unknown activation": (
        lambda p: (write_dense(p / "2_Dense", np.eye(16)), _module(p, type="x.Dense", path="2_Dense"),
                   (p / "2_Dense" / "config.json").write_text('{"activation_function": "torch.nn.Mish"}')),
        "activation 'Mish'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = write_modules(write_tiny(tmp_path / "m", TINY["bert"]), "mean_tokens")
    break_it, message = BROKEN[what]
    break_it(path)
    with pytest.raises(RunnerError) as err:
        load(path).warm_up()
    assert message in err.value.message


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"hidden_act": "mish"}, "activation 'mish'"),
        ("modernbert", {"hidden_activation": "mish"}, "activation 'mish'"),
        ("nomic_bert", {"prenorm": True}, "prenorm"),
        ("nomic_bert", {"rotary_emb_fraction": 0.5}, "whole heads"),
        ("qwen3", {"is_causal": False}, "both directions"),
    ],
)
def test_variants_that_would_come_out_wrong_are_refused(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    case = TINY[name]
    with pytest.raises(RunnerError, match=message):
        load(write_tiny(tmp_path / "m", case | {"config": case["config"] | change})).warm_up()


def test_the_published_configuration_of_nomic_is_understood(tmp_path: Path) -> None:
    case = TINY["nomic_bert"]
    published = {
        "model_type": "nomic_bert", "vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24,
        "n_positions": 8192, "max_trained_positions": 2048, "activation_function": "swiglu", "prenorm": False,
        "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
        "layer_norm_epsilon": 1e-12, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
        "type_vocab_size": 2, "use_rms_norm": False,
    }  # fmt: skip
    embedder = load(write_tiny(tmp_path / "m", case | {"config": published}))
    assert embedder.max_tokens == 2048
    np.testing.assert_allclose(vectors(embedder, case["rows"]), case["vectors"]["mean"], atol=2e-5, rtol=1e-4)


def test_padding_that_is_no_number_does_not_spread(tmp_path: Path) -> None:
    """Local layers of ModernBERT leave queries of the padding without any real key."""
    case = TINY["modernbert"]
    got = vectors(load(write_tiny(tmp_path / "m", case)), [case["rows"][0], case["rows"][2]])
    want = np.array(case["vectors"]["mean"])[[0, 2]]
    np.testing.assert_allclose(got, want, atol=2e-5, rtol=1e-4)
