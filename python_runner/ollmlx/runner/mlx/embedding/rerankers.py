"""Pairs of a query and a document to scores: encoders with a classifier of one label, and decoders asked yes or no."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ollmlx.runner.errors import unsupported
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.embedding.decoders import make_decoder_backbone
from ollmlx.runner.mlx.embedding.encoders import EncoderBackbone, load_encoder_weights, make_encoder_module
from ollmlx.runner.mlx.embedding.modules import ENCODERS, LogitScore, Rerank
from ollmlx.runner.mlx.embedding.pairs import Pair
from ollmlx.runner.mlx.embedding.pooling import pad, pool
from ollmlx.runner.mlx.embedding.postnorm import ACTIVATIONS

# Configurations with these compute their logits in a way that is not computed here.
_LOGIT_KEYS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class _HeadNames:
    """Names of a classifier's weights in checkpoints, and what is between its two layers."""

    dense: str
    out: str
    activation: Callable[[mx.array], mx.array] = mx.tanh
    norm: str = ""


_ROBERTA = _HeadNames("classifier.dense", "classifier.out_proj")
_HEADS = {
    "bert": _HeadNames("bert.pooler.dense", "classifier"),
    "camembert": _ROBERTA,
    "distilbert": _HeadNames("pre_classifier", "classifier", nn.relu),
    "modernbert": _HeadNames("head.dense", "classifier", norm="head.norm"),
    "mpnet": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


class Head(nn.Module):
    """A classifier of one label over the pooled hidden states."""

    def __init__(self, c: dict[str, Any], names: _HeadNames) -> None:
        super().__init__()
        width = c.get("hidden_size") or c["dim"]
        self._activation = names.activation
        if names.norm:
            kind = c.get("classifier_activation", "gelu")
            if kind not in ACTIVATIONS:
                raise unsupported(f"the activation {kind!r} is not supported")
            self._activation = ACTIVATIONS[kind]
            self.norm = nn.LayerNorm(width, eps=c.get("norm_eps", 1e-5), bias=c.get("norm_bias", False))
        self.dense = nn.Linear(width, width, bias=not names.norm or c.get("classifier_bias", False))
        self.out = nn.Linear(width, 1)

    def __call__(self, pooled: mx.array) -> mx.array:
        x = self._activation(self.dense(pooled))
        return self.out(self.norm(x) if "norm" in self else x)


class CrossEncoder(nn.Module):
    """An encoder and its classifier."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        family = config["model_type"]
        if family not in _HEADS:
            raise unsupported(f"classifiers of {family} models are not supported")
        self._names = _HEADS[family]
        self.encoder = make_encoder_module(ENCODERS[family], config)
        self.head = Head(config, self._names)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        places = {self._names.dense: "dense", self._names.out: "out", self._names.norm: "norm"}
        found = {}
        for name, array in weights.items():
            layer, _, kind = name.rpartition(".")
            if layer in places:
                found[f"head.{places[layer]}.{kind}"] = array
        encoder = self.encoder.sanitize(weights)
        return found | {f"encoder.{name}": array for name, array in encoder.items()}


def load_cross_encoder(config: dict[str, Any], path: Path) -> CrossEncoder:
    """The model with its weights, not yet computed."""
    return load_encoder_weights(CrossEncoder(config), config, path)


class ClassifierScorer:
    """Scores pairs with a cross-encoder; what jobs.EmbeddingJobs computes with."""

    lower_case = False

    def __init__(self, model: CrossEncoder, config: dict[str, Any], rerank: Rerank) -> None:
        self._model = model
        self.rerank = rerank
        # Only ModernBERT's classifiers ask for anything but the first token.
        self._pooling = config.get("classifier_pooling", "cls")
        limits = [n for n in (model.encoder.max_tokens, rerank.max_tokens) if n is not None]
        self.max_tokens: int | None = min(limits)

    def compute(self, rows: list[Pair], columns: Callable[[], int]) -> Iterator[np.ndarray | None]:
        """Scores of the pairs, of shape (pairs, 1); all columns at once, since each depends on all others."""
        types = None
        if any(row.second < len(row) for row in rows):
            types = pad([[0] * row.second + [1] * (len(row) - row.second) for row in rows])
        backbone = EncoderBackbone(self._model.encoder, types)
        for pooled in pool(backbone, [row.tokens for row in rows], (self._pooling,), columns):
            yield None if pooled is None else np.array(self._model.head(pooled).astype(mx.float32))

    def warm_up(self) -> None:
        for _ in self.compute([Pair([0], 1)], lambda: 1):
            pass


class LogitScorer:
    """Scores pairs by the logits of a decoder's next token; what jobs.EmbeddingJobs computes with."""

    lower_case = False

    def __init__(self, model: Any, config: dict[str, Any], rerank: Rerank) -> None:
        text = config.get("text_config") or config
        scaled = next((key for key in _LOGIT_KEYS if text.get(key)), None)
        if scaled is not None:
            raise unsupported(f"reranking with models whose logits follow {scaled} is not supported")
        self._backbone = make_decoder_backbone(model, config)
        self._output = _output_layer(model)
        self._logits: LogitScore = rerank.logits
        self.rerank = rerank
        self.max_tokens = rerank.max_tokens

    def compute(self, rows: list[Pair], columns: Callable[[], int]) -> Iterator[np.ndarray | None]:
        """Scores of the pairs, of shape (pairs, 1): None after each piece but the last."""
        for pooled in pool(self._backbone, [row.tokens for row in rows], ("lasttoken",), columns):
            yield None if pooled is None else self._score(pooled)

    def _score(self, pooled: mx.array) -> np.ndarray:
        logits = self._output(pooled).astype(mx.float32)
        scores = logits[:, self._logits.true_token]
        if self._logits.false_token is not None:
            scores = scores - logits[:, self._logits.false_token]
        return np.array(scores)[:, None]

    def warm_up(self) -> None:
        for _ in self.compute([Pair([0], 1)], lambda: 1):
            pass


def make_scorer(loaded: mlxlm.LoadedModel, rerank: Rerank) -> ClassifierScorer | LogitScorer:
    if rerank.logits is None:
        return ClassifierScorer(loaded.model, loaded.config, rerank)
    return LogitScorer(loaded.model, loaded.config, rerank)


def _output_layer(model: Any) -> Callable[[mx.array], mx.array]:
    """Hidden states to logits: the output layer, or the embeddings where it is tied to them."""
    outer = getattr(model, "language_model", model)
    if hasattr(outer, "lm_head"):
        return outer.lm_head
    embeddings = getattr(getattr(outer, "model", None), "embed_tokens", None)
    if embeddings is None:
        raise unsupported("reranking with decoders of this architecture is not supported")
    return embeddings.as_linear
