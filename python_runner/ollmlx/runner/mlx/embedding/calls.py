"""One Embed or Rerank call, from its texts to its numbers, on the front's event loop: what takes time runs on other
threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING, Any

import numpy as np

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJob
from ollmlx.runner.mlx.embedding.pairs import Pair, make_form
from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.vectors import scale

if TYPE_CHECKING:
    from ollmlx.runner.mlx.worker import Worker

# Texts that are tokenized at a time; prompts of other requests get their turn in between.
_TEXTS_AT_A_TIME = 64


async def embed(
    request: pb.EmbedRequest, worker: Worker, preparer: concurrent.futures.Executor
) -> pb.EmbedResponse:
    """Raises RunnerError. Cancelling the coroutine ends the work within one piece."""
    if "rerank" in worker.info.capabilities:
        raise unsupported("this model does not support embeddings: it scores documents for a query")
    if request.HasField("adapter") and "completion" not in worker.info.capabilities:
        raise unsupported("this model was made for embeddings, which take no adapters")
    info, lower_case = worker.info, worker.scheduler.embeddings.embedder.lower_case
    limit = min(request.num_ctx or info.context_length, info.max_context_length)
    loop = asyncio.get_running_loop()
    texts, rows = list(request.inputs), []
    for first in range(0, len(texts), _TEXTS_AT_A_TIME):
        part = texts[first : first + _TEXTS_AT_A_TIME]
        rows += await loop.run_in_executor(
            preparer, tokenize_texts, worker.tokenizer, part, limit, request.truncate, lower_case
        )
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise invalid(f"input {empty} has no tokens: there is nothing to embed")
    job = EmbeddingJob(rows, request.adapter)
    worker.post(worker.scheduler.embeddings.add, job)
    vectors = await asyncio.wrap_future(job.future)
    response = await loop.run_in_executor(preparer, make_response, vectors, request)
    response.prompt_tokens = sum(len(row) for row in rows)
    return response


async def rerank(
    request: pb.RerankRequest, worker: Worker, preparer: concurrent.futures.Executor
) -> pb.RerankResponse:
    """Raises RunnerError. Cancelling the coroutine ends the work within one piece."""
    how = worker.scheduler.embeddings.embedder.rerank
    if how is None:
        raise unsupported("this model does not support reranking")
    if not request.query:
        raise invalid("the query is empty: there is nothing to compare documents with")
    info = worker.info
    limit = min(request.num_ctx or info.context_length, info.max_context_length)
    form = make_form(worker.tokenizer, how, request.instruction)
    loop = asyncio.get_running_loop()
    pairs: list[Pair] = []
    documents = list(request.documents)
    for first in range(0, len(documents), _TEXTS_AT_A_TIME):
        part = documents[first : first + _TEXTS_AT_A_TIME]
        pairs += await loop.run_in_executor(
            preparer, lambda p: [form.encode(request.query, d, limit, request.truncate) for d in p], part
        )
    job = EmbeddingJob(pairs, pb.Adapter())
    worker.post(worker.scheduler.embeddings.add, job)
    scores = np.array([v[0] for v in await asyncio.wrap_future(job.future)], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise invalid("a score is NaN or Inf")
    if not request.raw_scores:
        scores = 1 / (1 + np.exp(-np.clip(scores, -500, 500)))
    return pb.RerankResponse(scores=scores, prompt_tokens=sum(len(p) for p in pairs))


def tokenize_texts(
    tokenizer: Any, texts: list[str], limit: int, truncate: bool, lower_case: bool
) -> list[list[int]]:
    """Token ids with the model's special tokens, at most `limit`: longer ones are cut, but keep their special tokens,
    or are refused."""
    plain = tokenizer._tokenizer
    if truncate and limit <= plain.num_special_tokens_to_add(pair=False):
        raise invalid("input after truncation exceeds maximum context length")
    rows = plain(
        [text.lower() for text in texts] if lower_case else texts,
        truncation=truncate,
        max_length=limit if truncate else None,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    if not truncate and any(len(row) > limit for row in rows):
        raise invalid("the input length exceeds the context length")
    return rows


def make_response(vectors: list[np.ndarray], request: pb.EmbedRequest) -> pb.EmbedResponse:
    """Cut, scale and check the vectors."""
    response = pb.EmbedResponse()
    if not vectors:
        return response
    for row in scale(np.stack(vectors), request):
        response.embeddings.add().values.extend(row)
    return response
