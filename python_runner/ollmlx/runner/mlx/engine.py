"""The MLX engine as the gRPC front sees it: it hands work to the threads that do it and waits without
blocking."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psutil

from ollmlx.runner.engine import Emit, Progress
from ollmlx.runner.errors import RunnerError, internal, invalid, precondition, unavailable, unsupported
from ollmlx.runner.mlx.embedding.calls import embed, rerank
from ollmlx.runner.mlx.embedding.scheduler import EmbeddingScheduler
from ollmlx.runner.mlx.prompt import Preparation, has_images
from ollmlx.runner.mlx.request import Request, failed_event
from ollmlx.runner.mlx.worker import Worker
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")

_STOPPING = "the model runner is stopping"


class EngineSession:
    """The requests of one host connection; implements ollmlx.runner.engine.Session."""

    def __init__(self, engine: MLXEngine, emit: Emit) -> None:
        self._engine = engine
        self._emit = emit

    def submit(self, request_id: int, request: pb.GenerateRequest) -> None:
        self._engine.submit(Request(request_id, self, request))

    def cancel(self, request_id: int) -> None:
        worker = self._engine.worker
        worker.post(worker.with_scheduler, lambda scheduler: scheduler.cancel(self, request_id))

    def close(self) -> None:
        worker = self._engine.worker
        worker.post(worker.with_scheduler, lambda scheduler: scheduler.close_session(self))

    def emit(self, events: pb.StepEvents) -> None:
        """Called on the worker's thread; the front's loop may be gone when the process ends."""
        try:
            self._emit(events)
        except RuntimeError:
            log.debug("events after the end of the session's loop were dropped")


class MLXEngine:
    """Implements ollmlx.runner.engine.Engine with mlx-lm."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.worker.start()
        # One thread: tokenizers are not made to be used by several at once.
        self._preparer = concurrent.futures.ThreadPoolExecutor(1, "prepare")
        # Images take a second to prepare, which prompts without any do not wait for.
        self._image_preparer = concurrent.futures.ThreadPoolExecutor(1, "images")
        self._state = pb.StatusResponse.STATE_IDLE
        # Calls of embed and rerank that are not answered yet.
        self._calls = 0
        self._process = psutil.Process()

    def warm_up(self) -> None:
        self.worker.call(self.worker.warm_up)

    async def load(self, request: pb.LoadRequest, progress: Progress) -> pb.ModelInfo:
        if self._state != pb.StatusResponse.STATE_IDLE:
            raise precondition(
                "this runner has a model or is loading one; a runner loads one model in its life"
            )
        self._state = pb.StatusResponse.STATE_LOADING
        abandoned = threading.Event()
        started = time.monotonic()
        try:
            info = await asyncio.wrap_future(self.worker.call(self.worker.load, request, progress, abandoned))
        except BaseException:
            abandoned.set()
            if self._state == pb.StatusResponse.STATE_LOADING:
                self._state = pb.StatusResponse.STATE_IDLE
            raise
        self._model_name = request.model_name or "this model"
        eyes = self.worker.eyes
        preparation = functools.partial(
            Preparation,
            info=info,
            keep_boundaries=not self.worker.scheduler.cuttable,
            eyes=eyes,
            blindness=self.worker.blindness,
        )
        self._preparation = preparation(self._tokenizer)
        self._image_preparation = preparation(eyes.tokenizer) if eyes is not None else None
        self._state = pb.StatusResponse.STATE_READY
        log.info(
            "model loaded",
            extra={
                "seconds": round(time.monotonic() - started, 3),
                "architecture": info.architecture,
                "device": info.device,
                "weight_bytes": info.weight_bytes,
            },
        )
        return info

    def open_session(self, emit: Emit) -> EngineSession:
        return EngineSession(self, emit)

    def submit(self, request: Request) -> None:
        """Register a request and prepare its prompt; it enters the batch when that is done."""
        refusal = self._refusal() or self._refuse_text(request.proto)
        if refusal is not None:
            request.session.emit(pb.StepEvents(events=[failed_event(request.id, refusal)]))
            return
        log.debug("request", extra={"trace_id": request.proto.trace_id, "request_id": request.id})
        self.worker.post(self.worker.scheduler.register, request)
        if self._image_preparation is not None and has_images(request.proto):
            self._image_preparer.submit(self._prepare, request, self._image_preparation)
        else:
            self._preparer.submit(self._prepare, request, self._preparation)

    def _prepare(self, request: Request, preparation: Preparation) -> None:
        if request.ended:
            return
        scheduler = self.worker.scheduler
        try:
            prompt = preparation.prepare(request.proto)
        except RunnerError as err:
            self.worker.post(scheduler.fail, request, err)
        except Exception as err:
            log.exception("a prompt could not be prepared", extra={"trace_id": request.proto.trace_id})
            self.worker.post(scheduler.fail, request, internal(f"the prompt could not be prepared: {err}"))
        else:
            self.worker.post(scheduler.admit_when_possible, request, prompt)

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        with self._counted():
            return await embed(request, self.worker, self._preparer)

    async def rerank(self, request: pb.RerankRequest) -> pb.RerankResponse:
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        with self._counted():
            return await rerank(request, self.worker, self._preparer)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        preparer = self._image_preparer if has_images(request) else self._preparer
        return await self._with_tokenizer(preparer, self._tokenize, request)

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        return await self._with_tokenizer(self._preparer, self._detokenize, request)

    async def _with_tokenizer(
        self, preparer: concurrent.futures.Executor, function: Any, request: Any
    ) -> Any:
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        return await asyncio.get_running_loop().run_in_executor(preparer, function, request)

    def _tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        if request.WhichOneof("input") == "chat":
            tokens, rendered, _ = self._preparation.encode_chat(request.chat)
        else:
            tokens, rendered, _ = self._preparation.encode_prompt(request.prompt)
        return pb.TokenizeResponse(tokens=tokens, rendered=rendered)

    def _detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        size = self.worker.info.vocab_size
        wrong = next((t for t in request.tokens if t >= size), None)
        if wrong is not None:
            raise invalid(f"token {wrong} is not in the vocabulary of {size} tokens")
        text = self._tokenizer.decode(list(request.tokens), skip_special_tokens=False)
        return pb.DetokenizeResponse(text=text)

    def status(self) -> pb.StatusResponse:
        worker, counters = self.worker, self.worker.counters
        response = pb.StatusResponse(
            state=self._state,
            running=counters.running,
            queued=counters.queued,
            steps=counters.steps,
            memory=worker.memory(),
            prefix_cache=worker.prefix_cache(),
            model=worker.info,
        )
        info = self._process.memory_info()
        response.memory.resident_bytes = info.rss
        # Only Linux tells what is shared.
        response.memory.private_bytes = max(info.rss - getattr(info, "shared", 0), 0)
        if worker.device is not None:
            response.imported = True
            response.device.CopyFrom(worker.describe_device())
        if counters.running:
            response.step_age_ns = max(time.monotonic_ns() - counters.last_step_ns, 0)
        return response

    async def trim(self, request: pb.TrimRequest) -> pb.TrimResponse:
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        limit = await asyncio.wrap_future(
            self.worker.call(self.worker.scheduler.trim, request.kv_cache_bytes)
        )
        return pb.TrimResponse(kv_cache_bytes=limit)

    async def drain(self, seconds: float) -> None:
        self._state = pb.StatusResponse.STATE_STOPPING
        deadline = time.monotonic() + seconds
        while not await self._drained(deadline) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        failing = self._ask(lambda s: s.fail_all(unavailable(_STOPPING)))
        # A step that does not end must not keep the process from ending.
        await asyncio.wait([failing], timeout=1.0)
        await asyncio.sleep(0.01)

    async def _drained(self, deadline: float) -> bool:
        """Whether nothing is left, asked of the engine's thread: it knows also of what is on its way to it."""
        if self._calls:
            return False
        drained = self._ask(lambda scheduler: scheduler.drained)
        await asyncio.wait([drained], timeout=max(deadline - time.monotonic(), 0))
        return drained.done() and drained.result() is not False

    def _ask(self, function: Callable[[EmbeddingScheduler], T]) -> asyncio.Future[T | None]:
        return asyncio.wrap_future(self.worker.call(self.worker.with_scheduler, function))

    async def save(self, seconds: float) -> None:
        saving = self._ask(lambda s: s.save_prefixes(seconds))
        # A step that does not end must not keep the process from ending.
        await asyncio.wait([saving], timeout=seconds + 1.0)

    def close(self) -> None:
        self.worker.close()
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self._image_preparer.shutdown(wait=False, cancel_futures=True)

    @property
    def _tokenizer(self) -> Any:
        return self.worker.tokenizer

    def _refuse_text(self, request: pb.GenerateRequest) -> RunnerError | None:
        """Why this model cannot answer a request for text: it was made for embeddings."""
        if "completion" in self.worker.info.capabilities:
            return None
        wish = "chat" if request.WhichOneof("input") == "chat" else "generate"
        return unsupported(f'"{self._model_name}" does not support {wish}')

    def _refusal(self) -> RunnerError | None:
        """Why a call that needs a model cannot be served now."""
        if self._state == pb.StatusResponse.STATE_STOPPING:
            return unavailable(_STOPPING)
        if self._state != pb.StatusResponse.STATE_READY:
            return precondition("no model is loaded in this runner")
        return None
