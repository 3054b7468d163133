"""Calls that give numbers and no text: embeddings and relevance."""

from __future__ import annotations

import math

import numpy as np

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.gguf.loading import LoadedModel
from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.vectors import scale

# Tokens that the library puts around a text, at most.
_SPARE_TOKENS = 8


def embed(model: LoadedModel, request: pb.EmbedRequest) -> pb.EmbedResponse:
    """One vector for each input, pooled as the model's file asks; the last token's of a model that gives text."""
    if request.HasField("adapter") and request.adapter.name not in model.adapters:
        raise unsupported(f"adapter {request.adapter.name!r} was not loaded with the model")
    if model.metadata.reranks:
        raise unsupported(f'"{model.name}" ranks documents and gives no embeddings')
    inputs = [_fit_input(model, text, i, request) for i, text in enumerate(request.inputs)]
    if not inputs:
        return pb.EmbedResponse()
    answer = model.library.embed({"input": inputs, "embd_normalize": -1})
    table = np.array([entry["embedding"] for entry in answer["data"]], np.float32)
    response = pb.EmbedResponse(prompt_tokens=answer["usage"]["prompt_tokens"])
    for row in scale(table, request):
        response.embeddings.add().values.extend(row)
    return response


def rerank(model: LoadedModel, request: pb.RerankRequest) -> pb.RerankResponse:
    """Relevance of each document; between 0 and 1 unless the model's own scores are asked for."""
    if not model.metadata.reranks:
        raise unsupported(f'"{model.name}" does not support reranking: its file names no such pooling')
    if request.instruction:
        raise unsupported(
            "the gguf engine takes no instruction for reranking: it is part of the template in the model's file"
        )
    if not request.documents:
        return pb.RerankResponse()
    documents = [_fit_document(model, text, i, request) for i, text in enumerate(request.documents)]
    answer = model.library.rerank({"query": request.query, "documents": documents})
    scores = [0.0] * len(documents)
    for result in answer["results"]:
        score = result["relevance_score"]
        scores[result["index"]] = score if request.raw_scores else 1 / (1 + math.exp(-score))
    return pb.RerankResponse(scores=scores, prompt_tokens=answer["usage"]["prompt_tokens"])


def _fit_document(model: LoadedModel, text: str, index: int, request: pb.RerankRequest) -> str:
    """A document that the context can hold with the query."""
    limit = min(request.num_ctx or model.info.context_length, model.info.context_length) - _SPARE_TOKENS
    if len(text.encode()) + len(request.query.encode()) <= limit:
        return text
    room = limit - len(model.library.tokenize(request.query, add_special=False))
    tokens = model.library.tokenize(text, add_special=False)
    if len(tokens) <= room:
        return text
    if not request.truncate or room < 1:
        raise invalid(f"document {index} and the query are longer than the context of the model")
    return model.library.detokenize(tokens[:room])


def _fit_input(model: LoadedModel, text: str, index: int, request: pb.EmbedRequest) -> str | list[int]:
    """An input that the context can hold: cut, but with its special tokens, or refused."""
    limit = min(request.num_ctx or model.info.context_length, model.info.context_length)
    if text and len(text.encode()) + _SPARE_TOKENS <= limit:
        return text
    tokens = model.library.tokenize(text, add_special=True)
    if not tokens:
        raise invalid(f"input {index} has no tokens: there is nothing to embed")
    if len(tokens) <= limit:
        return tokens
    if not request.truncate:
        raise invalid("the input length exceeds the context length")
    ending = tokens[-1:] if tokens[-1:] == model.library.tokenize("", add_special=True)[-1:] else []
    if limit <= len(ending) + 1:
        raise invalid("input after truncation exceeds maximum context length")
    return tokens[: limit - len(ending)] + ending
