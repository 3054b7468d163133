"""The GGUF engine as the gRPC front sees it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ollmlx.runner.engine import Emit, Progress
from ollmlx.runner.errors import (
    RunnerError,
    cancelled,
    exists,
    invalid,
    precondition,
    unavailable,
    unsupported,
)
from ollmlx.runner.gguf import body, infill, media
from ollmlx.runner.gguf.generation import Generation
from ollmlx.runner.gguf.loading import LoadedModel, load_model
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

_STOPPING = "the model runner is stopping"
# How often a load's progress is looked at.
_PROGRESS_SECONDS = 0.1
# How long `close` waits for answers to notice that they are cancelled.
_CLOSE_SECONDS = 2.0
# How long events wait for others of their step.
_GATHER_SECONDS = 0.002


class GGUFSession:
    """The requests of one host connection; implements ollmlx.runner.engine.Session."""

    def __init__(self, engine: GGUFEngine, emit: Emit) -> None:
        self._engine = engine
        self._emit = emit
        self._open = True
        self._running: dict[int, tuple[Generation, concurrent.futures.Future[None]]] = {}
        self._lock = threading.Lock()
        # Events of the step that is being told. The requests of a step tell theirs one after the other, and a
        # message costs more than an event.
        self._gathered: list[pb.Event] = []
        self._wake = threading.Event()
        self._flusher = threading.Thread(target=self._flush_late, name="flush", daemon=True)
        self._flusher.start()

    def submit(self, request_id: int, request: pb.GenerateRequest) -> None:
        generation = Generation(request_id, request, self.emit)
        refusal = self._engine.refusal(request)
        with self._lock:
            if request_id in self._running:
                refusal = exists(f"request {request_id} is running already")
        if refusal is not None:
            generation.fail(refusal)
            return
        future = self._engine.start(generation, lambda: self._forget(request_id))
        with self._lock:
            if not future.done():
                self._running[request_id] = (generation, future)

    def cancel(self, request_id: int, error: RunnerError | None = None) -> None:
        with self._lock:
            found = self._running.get(request_id)
        if found is None:
            return
        generation, future = found
        generation.cancel(error)
        if future.cancel():
            self._forget(request_id)
            generation.fail(error or cancelled())

    def cancel_all(self, error: RunnerError | None = None) -> None:
        with self._lock:
            ids = list(self._running)
        for request_id in ids:
            self.cancel(request_id, error)

    def close(self) -> None:
        self._open = False
        self._wake.set()
        self.cancel_all()
        self._engine.forget_session(self)

    def emit(self, event: pb.Event) -> None:
        """Called on the thread of a request. The event leaves when all that run have told theirs, or soon after."""
        with self._lock:
            self._gathered.append(event)
            if len(self._gathered) >= self._engine.running:
                self._flush()
                return
        self._wake.set()

    def _flush_late(self) -> None:
        while self._open:
            self._wake.wait()
            time.sleep(_GATHER_SECONDS)
            self._wake.clear()
            with self._lock:
                self._flush()

    def _flush(self) -> None:
        """Hand over what was gathered; the caller has the lock. The front's loop may be gone when the process ends."""
        events, self._gathered = self._gathered, []
        if not events or not self._open:
            return
        self._engine.step()
        try:
            self._emit(pb.StepEvents(events=events))
        except RuntimeError:
            log.debug("events after the end of the session's loop were dropped")

    def _forget(self, request_id: int) -> None:
        with self._lock:
            self._running.pop(request_id, None)


class GGUFEngine:
    """Implements ollmlx.runner.engine.Engine with xllamacpp."""

    def __init__(self) -> None:
        self._state = pb.StatusResponse.STATE_IDLE
        self._process = psutil.Process()
        self._model: LoadedModel | None = None
        # Loads, and calls that generate nothing.
        self._helper = concurrent.futures.ThreadPoolExecutor(2, "call")
        # One thread for each request that is computed; the rest waits in its queue.
        self._slots: concurrent.futures.ThreadPoolExecutor | None = None
        self._sessions: set[GGUFSession] = set()
        self._lock = threading.Lock()
        self._running = 0
        self._waiting = 0
        self._steps = 0
        self._last_step_ns = time.monotonic_ns()

    def warm_up(self) -> None:
        self._helper.submit(_import_libraries)

    async def trim(self, request: pb.TrimRequest) -> pb.TrimResponse:
        """Caches are allocated at the load and stay: the answer is what they may use all the same."""
        refusal = self._not_ready()
        if refusal is not None:
            raise refusal
        return pb.TrimResponse(kv_cache_bytes=self._model.kv_bytes + self._model.prefix_bytes)

    async def load(self, request: pb.LoadRequest, progress: Progress) -> pb.ModelInfo:
        if self._state != pb.StatusResponse.STATE_IDLE:
            raise precondition(
                "this runner has a model or is loading one; a runner loads one model in its life"
            )
        self._state = pb.StatusResponse.STATE_LOADING
        started = time.monotonic()
        loading = asyncio.get_running_loop().run_in_executor(self._helper, load_model, request)
        try:
            await self._watch(loading, Path(request.model_path), progress)
            model = loading.result()
        except BaseException:
            # The library cannot be stopped while it loads: what it has loaded in vain goes when it is done.
            loading.add_done_callback(_discard)
            self._state = pb.StatusResponse.STATE_IDLE
            raise
        self._model = model
        self._slots = concurrent.futures.ThreadPoolExecutor(model.slots, "request")
        self._state = pb.StatusResponse.STATE_READY
        log.info(
            "model loaded",
            extra={
                "seconds": round(time.monotonic() - started, 3),
                "architecture": model.info.architecture,
                "device": model.info.device,
                "weight_bytes": model.info.weight_bytes,
                "slots": model.slots,
                "context": model.info.context_length,
            },
        )
        return model.info

    async def _watch(self, loading: asyncio.Future[LoadedModel], path: Path, progress: Progress) -> None:
        """Report how much of the file has come into memory, until the load ends."""
        total = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.gguf"))
        before, reported = self._process.memory_info().rss, -1
        while not loading.done():
            done = min(max(self._process.memory_info().rss - before, 0), total)
            if done > reported:
                reported = done
                progress(
                    pb.LoadProgress(stage=pb.LoadProgress.STAGE_WEIGHTS, bytes_done=done, bytes_total=total)
                )
            await asyncio.wait([loading], timeout=_PROGRESS_SECONDS)

    def open_session(self, emit: Emit) -> GGUFSession:
        session = GGUFSession(self, emit)
        with self._lock:
            self._sessions.add(session)
        return session

    def forget_session(self, session: GGUFSession) -> None:
        with self._lock:
            self._sessions.discard(session)

    def start(self, generation: Generation, ended: Callable[[], None]) -> concurrent.futures.Future[None]:
        """Compute a request as soon as there is a slot for it."""

        def run() -> None:
            with self._lock:
                self._waiting -= 1
                self._running += 1
                self._last_step_ns = time.monotonic_ns()
            try:
                generation.run(self._model)
            finally:
                ended()
                with self._lock:
                    self._running -= 1

        with self._lock:
            self._waiting += 1
        future = self._slots.submit(run)
        future.add_done_callback(self._count_cancelled)
        return future

    def _count_cancelled(self, future: concurrent.futures.Future[None]) -> None:
        if future.cancelled():
            with self._lock:
                self._waiting -= 1

    @property
    def running(self) -> int:
        return self._running

    def step(self) -> None:
        self._steps += 1
        self._last_step_ns = time.monotonic_ns()

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        return await self._call(_vectors().embed, request)

    async def rerank(self, request: pb.RerankRequest) -> pb.RerankResponse:
        return await self._call(_vectors().rerank, request)

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        return await self._call(self._tokenize, request)

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        return await self._call(self._detokenize, request)

    async def _call(self, function: Callable[[LoadedModel, Any], Any], request: Any) -> Any:
        refusal = self._not_ready()
        if refusal is not None:
            raise refusal
        return await asyncio.get_running_loop().run_in_executor(self._helper, function, self._model, request)

    @staticmethod
    def _tokenize(model: LoadedModel, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        body.check_images(request, model)
        library = model.library
        if request.WhichOneof("input") == "chat":
            chat = request.chat
            pictures, context = media.encode(body.images_of(chat)), [*chat.context]
            if model.metadata.chat_template:
                text = library.render(body.chat_body(chat))
            else:
                text = body.plain_text(chat, library.marker if pictures else "")
        else:
            text, context = request.prompt.text, [*request.prompt.context]
            pictures = media.encode(request.prompt.images)
            if pictures:
                text, pictures = media.place(text, pictures, library.marker)
            if request.prompt.HasField("suffix"):
                if model.infill is None:
                    raise unsupported(
                        "this model does not support insert: its vocabulary has no tokens for it"
                    )
                text = infill.render(model.infill, text, request.prompt.suffix)
        if not pictures:
            tokens = library.tokenize(text, add_special=not context)
            return pb.TokenizeResponse(tokens=[*context, *tokens], rendered=text)
        counts = [model.image_tokens(p) for p in pictures]
        tokens = media.tokenize(library, text, counts, add_special=not context)
        return pb.TokenizeResponse(tokens=[*context, *tokens], rendered=media.show(text, library.marker))

    @staticmethod
    def _detokenize(model: LoadedModel, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse:
        wrong = next((t for t in request.tokens if t >= model.info.vocab_size), None)
        if wrong is not None:
            raise invalid(f"token {wrong} is not in the vocabulary of {model.info.vocab_size} tokens")
        return pb.DetokenizeResponse(text=model.library.detokenize(request.tokens))

    def status(self) -> pb.StatusResponse:
        model = self._model
        memory = pb.Memory(resident_bytes=self._process.memory_info().rss)
        if model is not None:
            memory.active_bytes = memory.peak_bytes = model.info.weight_bytes + model.kv_bytes
            memory.kv_cache_bytes = model.kv_bytes
        response = pb.StatusResponse(
            state=self._state,
            memory=memory,
            running=self._running,
            queued=self._waiting,
            steps=self._steps,
            model=model.info if model is not None else None,
        )
        if self._running:
            response.step_age_ns = max(time.monotonic_ns() - self._last_step_ns, 0)
        return response

    async def drain(self, seconds: float) -> None:
        self._state = pb.StatusResponse.STATE_STOPPING
        deadline = time.monotonic() + seconds
        while (self._running or self._waiting) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.cancel_all(unavailable(_STOPPING))
        # The answers notice it at their next piece; one that does not must not keep the process from ending.
        deadline = time.monotonic() + 1.0
        while self._running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)

    async def save(self, seconds: float) -> None:
        """Nothing is kept beyond the life of this engine."""

    def close(self) -> None:
        for session in list(self._sessions):
            session.close()
        if self._slots is not None:
            self._slots.shutdown(wait=False, cancel_futures=True)
        self._helper.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.01)
        model, self._model = self._model, None
        if model is not None and not self._running:
            model.library.close()

    def refusal(self, request: pb.GenerateRequest) -> RunnerError | None:
        """Why a request cannot be taken now."""
        refusal = self._not_ready()
        if refusal is None and "completion" not in self._model.info.capabilities:
            wish = "chat" if request.WhichOneof("input") == "chat" else "generate"
            refusal = unsupported(f'"{self._model.name}" does not support {wish}')
        return refusal

    def _not_ready(self) -> RunnerError | None:
        if self._state == pb.StatusResponse.STATE_STOPPING:
            return unavailable(_STOPPING)
        if self._state != pb.StatusResponse.STATE_READY:
            return precondition("no model is loaded in this runner")
        return None


def _vectors() -> Any:
    """Imported where vectors are asked for: NumPy takes memory that text does not need."""
    from ollmlx.runner.gguf import vectors

    return vectors


def _import_libraries() -> None:
    with contextlib.suppress(ImportError):
        import xllamacpp  # noqa: F401


def _discard(loading: asyncio.Future[LoadedModel]) -> None:
    with contextlib.suppress(BaseException):
        loading.result().library.close()
