"""Scores of pairs: classifiers on encoders whose states are checked elsewhere, and decoders that say yes or no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import mlx.core as mx
import numpy as np
import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.embedding.embedder import load_backbone, make_embedder
from ollmlx.runner.mlx.embedding.modules import LogitScore, Rerank
from ollmlx.runner.mlx.embedding.pairs import Pair, make_form
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.embedding_models import minilm, reference, tiny, weight, write_tiny
from tests.support.runner_process import RunnerProcess

TINY: dict[str, Any] = reference()["tiny"]
ONE_LABEL = {"id2label": {"0": "LABEL_0"}}

# Family: its class, the weights of its classifier with their shapes, and what they compute of the pooled vector.
TANH = np.tanh


def gelu(x: np.ndarray) -> np.ndarray:
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


HEADS: dict[str, tuple[str, str, str, Any]] = {
    "bert": ("Bert", "bert.pooler.dense", "classifier", TANH),
    "roberta": ("Roberta", "classifier.dense", "classifier.out_proj", TANH),
    "xlm-roberta": ("XLMRoberta", "classifier.dense", "classifier.out_proj", TANH),
    "camembert": ("Camembert", "classifier.dense", "classifier.out_proj", TANH),
    "distilbert": ("DistilBert", "pre_classifier", "classifier", lambda x: np.maximum(x, 0)),
    "mpnet": ("MPNet", "classifier.dense", "classifier.out_proj", TANH),
    "modernbert": ("ModernBert", "head.dense", "classifier", gelu),
}


def cross_encoder(directory: Path, family: str, case: dict[str, Any] | None = None, **config: object) -> Path:
    """A tiny model of the reference with a classifier."""
    case = case or TINY[family]
    name, dense, out, _ = HEADS[family]
    width = case["config"].get("hidden_size") or case["config"]["dim"]
    path = write_tiny(directory, case)
    weights = {f"{prefix(family)}{k}": a for k, a in mx.load(str(path / "model.safetensors")).items()}
    weights = {k: a for k, a in weights.items() if "pooler" not in k}
    heads = {f"{dense}.weight": [width, width], f"{out}.weight": [1, width], f"{out}.bias": [1]}
    if family == "modernbert":
        heads["head.norm.weight"] = [width]
    else:
        heads[f"{dense}.bias"] = [width]
    weights |= {k: mx.array(weight(k, shape)) for k, shape in heads.items()}
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    settings = {"architectures": [f"{name}ForSequenceClassification"], **ONE_LABEL, **config}
    (path / "config.json").write_text(json.dumps(case["config"] | settings))
    return path


def prefix(family: str) -> str:
    return {"bert": "bert.", "distilbert": "distilbert.", "mpnet": "mpnet.", "modernbert": "model."}.get(
        family, "roberta."
    )


def load(path: Path) -> Any:
    config = mlxlm.load_config(path)
    model = load_backbone(path, config, lambda done, total: None)
    return make_embedder(mlxlm.LoadedModel(model, None, config), path)


def scores(scorer: Any, rows: list[list[int]], second: int | None = None, columns: int = 1000) -> np.ndarray:
    pairs = [Pair(row, len(row) if second is None else second) for row in rows]
    *pieces, last = scorer.compute(pairs, lambda: columns)
    assert all(piece is None for piece in pieces)
    return last[:, 0]


def expected(family: str, pooled: np.ndarray) -> np.ndarray:
    _, dense, out, activation = HEADS[family]
    width = pooled.shape[1]
    x = pooled @ weight(f"{dense}.weight", [width, width]).T
    if family == "modernbert":
        x = layer_norm(activation(x)) * weight("head.norm.weight", [width])
    else:
        x = activation(x + weight(f"{dense}.bias", [width]))
    return (x @ weight(f"{out}.weight", [1, width]).T + weight(f"{out}.bias", [1]))[:, 0]


@pytest.mark.parametrize("family", HEADS)
def test_classifiers_compute_what_their_architecture_says(tmp_path: Path, family: str) -> None:
    case = TINY[family]
    scorer = load(cross_encoder(tmp_path / "m", family))
    want = expected(family, np.array(case["vectors"]["cls"]))
    np.testing.assert_allclose(scores(scorer, case["rows"]), want, atol=5e-4, rtol=1e-3)
    alone = [scores(scorer, [row])[0] for row in case["rows"]]
    np.testing.assert_allclose(scores(scorer, case["rows"]), alone, atol=1e-5)


def test_modernbert_may_classify_the_mean(tmp_path: Path) -> None:
    scorer = load(cross_encoder(tmp_path / "m", "modernbert", classifier_pooling="mean"))
    want = expected("modernbert", np.array(TINY["modernbert"]["vectors"]["mean"]))
    np.testing.assert_allclose(scores(scorer, TINY["modernbert"]["rows"]), want, atol=5e-4, rtol=1e-3)


def test_bert_tells_the_second_segment_apart(tmp_path: Path) -> None:
    path = cross_encoder(tmp_path / "m", "bert")
    rows = TINY["bert"]["rows"][:2]
    plain, told = scores(load(path), rows), scores(load(path), rows, second=8)
    assert np.abs(plain - told).min() > 1e-4
    weights = mx.load(str(path / "model.safetensors"))
    table = weights["bert.embeddings.token_type_embeddings.weight"]
    weights["bert.embeddings.token_type_embeddings.weight"] = mx.stack([table[0], table[0]])
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    np.testing.assert_allclose(scores(load(path), rows, second=8), plain, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"id2label": {"0": "A", "1": "B"}}, {"architectures": ["BertModel"]}, {"architectures": None}],
)
def test_what_is_no_reranker_embeds(tmp_path: Path, change: dict[str, object]) -> None:
    assert load(cross_encoder(tmp_path / "m", "bert", **change)).rerank is None


def logit_scorer(directory: Path, false_token: int | None) -> Path:
    path = write_tiny(directory, TINY["qwen3"])
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_LogitScore",
            "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
        },
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_LogitScore").mkdir()
    config = {"true_token_id": 7, "false_token_id": false_token}
    (path / "1_LogitScore" / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("false_token", [9, None])
def test_decoders_are_asked_for_a_token(tmp_path: Path, false_token: int | None) -> None:
    case = TINY["qwen3"]
    scorer = load(logit_scorer(tmp_path / "m", false_token))
    name = next(k for k in case["weights"] if k.endswith("embed_tokens.weight"))
    logits = np.array(case["vectors"]["lasttoken"]) @ weight(name, case["weights"][name]).T
    want = logits[:, 7] - (logits[:, false_token] if false_token is not None else 0)
    np.testing.assert_allclose(scores(scorer, case["rows"]), want, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(scores(scorer, case["rows"], columns=7), want, atol=1e-3, rtol=1e-3)


# ---- pairs


def test_pairs_are_segments_of_the_tokenizer() -> None:
    from types import SimpleNamespace

    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    form = make_form(SimpleNamespace(_tokenizer=tokenizer), Rerank(None, None, {}), "")
    pair = form.encode("what is mlx", "an array framework", 100, truncate=False)
    text = tokenizer.decode(pair.tokens)
    assert text == "[CLS] what is mlx [SEP] an array framework [SEP]"
    assert tokenizer.decode(pair.tokens[: pair.second]) == "[CLS] what is mlx [SEP]"
    cut = form.encode("what is mlx", "word " * 300, 50, truncate=True)
    assert len(cut) == 50
    assert tokenizer.decode(cut.tokens[: cut.second]) == "[CLS] what is mlx [SEP]"
    with pytest.raises(RunnerError, match="50 tokens"):
        form.encode("what is mlx", "word " * 300, 50, truncate=False)
    with pytest.raises(RunnerError, match="instruction"):
        make_form(None, Rerank(None, None, {}), "find facts")


TEMPLATE = (
    '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first | default("judge") }}|'
    '{{ (messages | selectattr("role", "eq", "query") | first).content }}|'
    '{{ (messages | selectattr("role", "eq", "document") | first).content }}|yes or no?'
)


def test_pairs_for_decoders_follow_the_chat_template(tmp_path: Path) -> None:
    from tests.support.tiny_models import write_tokenizer

    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    tokenizer = mlxlm.load_tokenizer(tmp_path, {})
    rerank = Rerank(LogitScore(1, 2), None, {})
    form = make_form(tokenizer, rerank, "")
    assert tokenizer.decode(form.encode("q", "d", 100, truncate=False).tokens) == "judge|q|d|yes or no?"
    told = make_form(tokenizer, rerank, "find").encode("q", "d", 100, truncate=False)
    assert tokenizer.decode(told.tokens) == "find|q|d|yes or no?"
    cut = form.encode("q", "d" * 100, 30, truncate=True)
    assert tokenizer.decode(cut.tokens) == "judge|q|" + "d" * 11 + "|yes or no?"
    for truncate in (True, False):
        with pytest.raises(RunnerError, match="20 tokens"):
            form.encode("q" * 40, "d", 20, truncate=truncate)


# ---- calls


def tiny_reranker(directory: Path) -> Path:
    """A whole model, tokenizer and all."""
    path = tiny(directory, "bert")
    vocabulary = json.loads((path / "config.json").read_text())["vocab_size"]
    small = TINY["bert"]["config"]["vocab_size"]
    shapes = {
        key: [vocabulary if n == small else n for n in shape]
        for key, shape in TINY["bert"]["weights"].items()
    }
    config = TINY["bert"]["config"] | {"vocab_size": vocabulary}
    return cross_encoder(path, "bert", {"config": config, "weights": shapes})


def test_rerank_calls(tmp_path: Path) -> None:
    path = tiny_reranker(tmp_path / "m")
    with RunnerProcess() as process:
        info = process.load(path)
        assert list(info.capabilities) == ["rerank"]
        call = process.stub.Rerank
        raw = call(pb.RerankRequest(query="fox", documents=["a fox", "a dog", "x"], raw_scores=True))
        assert len(set(raw.scores)) == 3
        assert raw.prompt_tokens == 3 * 3 + 5 + 5 + 1
        relevance = call(pb.RerankRequest(query="fox", documents=["a fox", "a dog", "x"]))
        np.testing.assert_allclose(relevance.scores, 1 / (1 + np.exp(-np.array(raw.scores))), atol=1e-6)
        assert not call(pb.RerankRequest(query="fox")).scores
        assert (
            call(pb.RerankRequest(query="fox", documents=["long " * 50], truncate=True)).prompt_tokens == 32
        )
        for wrong, said in (
            (pb.RerankRequest(query="fox", documents=["long " * 50]), "32 tokens"),
            (pb.RerankRequest(documents=["x"]), "query is empty"),
            (pb.RerankRequest(query="q", documents=["x"], instruction="find"), "instruction"),
        ):
            with pytest.raises(grpc.RpcError, match=said):
                call(wrong)
        with pytest.raises(grpc.RpcError, match="does not support embeddings"):
            process.stub.Embed(pb.EmbedRequest(inputs=["x"]))


def test_other_models_do_not_rerank(runner: RunnerProcess) -> None:
    with pytest.raises(grpc.RpcError, match="does not support reranking"):
        runner.stub.Rerank(pb.RerankRequest(query="q", documents=["d"]))
