"""Token ids to vectors: a backbone, the pooling and the stages that the model's files ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.embedding.decoders import make_decoder_backbone
from ollmlx.runner.mlx.embedding.encoders import EncoderBackbone, make_encoder
from ollmlx.runner.mlx.embedding.modules import ENCODERS, Modules, read_modules, read_rerank
from ollmlx.runner.mlx.embedding.pooling import Backbone, Stages, pool
from ollmlx.runner.mlx.embedding.rerankers import (
    ClassifierScorer,
    LogitScorer,
    load_cross_encoder,
    make_scorer,
)

# An encoder that does not say: as most of them are made. A decoder: its last token is the only one that has seen all.
_ENCODER_POOLING = "mean"
_DECODER_POOLING = "lasttoken"


class Embedder:
    """Makes vectors of one model; belongs to the engine's thread."""

    def __init__(self, backbone: Backbone, modules: Modules) -> None:
        self._backbone = backbone
        self._pooling = modules.pooling
        self._stages = Stages(modules)
        limits = [n for n in (backbone.max_tokens, modules.max_tokens) if n is not None]
        # Longest input, special tokens included; None: the model's context length.
        self.max_tokens = min(limits) if limits else None
        # How it reranks: not at all.
        self.rerank = None
        # Inputs are made lower case before they are tokenized.
        self.lower_case = modules.lower_case

    def compute(self, rows: list[list[int]], columns: Callable[[], int]) -> Iterator[np.ndarray | None]:
        """The vectors of `rows`, of shape (rows, dimensions), in float32: None after each piece but the last.

        None of the rows is empty.
        """
        for pooled in pool(self._backbone, rows, self._pooling, columns):
            yield None if pooled is None else np.array(self._stages(pooled))

    def warm_up(self) -> None:
        """Compute one token, which shows whether the parts fit together."""
        for _ in self.compute([[0]], lambda: 1):
            pass


def load_backbone(path: Path, config: dict[str, Any], progress: Callable[[int, int], None]) -> Any:
    """Read the model of `path`, which was made for embeddings: an encoder, or a decoder of mlx-lm.

    `progress(done, total)` is called in bytes; what it raises abandons the load.
    """
    module = ENCODERS.get(config.get("model_type", ""))
    if module is None:
        return mlxlm.load_weights(path, progress)
    if read_rerank(path, config) is not None:
        model = load_cross_encoder(config, path)
    else:
        model = make_encoder(module, config, path)
    mlxlm.read_weights(model, progress)
    return model


def make_embedder(loaded: mlxlm.LoadedModel, path: Path) -> Embedder | ClassifierScorer | LogitScorer:
    """The embedder of a loaded model, of one that was made for text too; what scores pairs, for one that reranks."""
    rerank = read_rerank(path, loaded.config)
    if rerank is not None:
        return make_scorer(loaded, rerank)
    if loaded.config.get("model_type") in ENCODERS:
        return Embedder(EncoderBackbone(loaded.model), read_modules(path, _ENCODER_POOLING))
    return Embedder(make_decoder_backbone(loaded.model, loaded.config), read_modules(path, _DECODER_POOLING))
