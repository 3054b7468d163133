"""The thread that owns every MLX object: it loads, prefills, decodes and unloads, and nothing else does.

Its loop is: take commands, admit, step, flush. Commands are functions that other threads hand over; between two steps
all of them are run, so a cancelled request is gone within one step. What is computed is the scheduler's to decide, of
which there is one while a model is loaded.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ollmlx.runner.engine import Progress
from ollmlx.runner.errors import RunnerError, cancelled, precondition
from ollmlx.runner.mlx import loading
from ollmlx.runner.mlx.counters import Counters
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJobs
from ollmlx.runner.mlx.embedding.scheduler import EmbeddingScheduler
from ollmlx.runner.mlx.watchdog import Watchdog
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx import mlxlm as mlxlm_module
    from ollmlx.runner.mlx.scheduler import Scheduler
    from ollmlx.runner.mlx.vision.prompt import ImageEncoder

log = logging.getLogger(__name__)

T = TypeVar("T")

# Exit code of a runner whose engine cannot go on (EX_SOFTWARE).
EXIT_ENGINE_FAILED = 70


class Worker:
    """Runs on one thread. What others may call or read says so."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closed = False
        self._watchdog = Watchdog()
        # Set by the import, which takes seconds and must happen on the thread.
        self._mlxlm: mlxlm_module | None = None
        self._loaded: mlxlm_module.LoadedModel | None = None

        # May be read on any thread. What MLX computes on; set by the import.
        self.device: mlxlm_module.Device | None = None
        # What was loaded, and what is computed with it; None while nothing is. A model that gives text has a Scheduler.
        self.info: pb.ModelInfo | None = None
        self.scheduler: Scheduler | EmbeddingScheduler | None = None
        self.counters = Counters()

    # ---- called from other threads

    def start(self) -> None:
        self._watchdog.start()
        threading.Thread(target=self._run, name="mlx", daemon=True).start()

    def call(self, function: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        """Run a method of this worker or its scheduler on its thread, between two steps."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except BaseException as err:
                future.set_exception(err)

        self._commands.put(command)
        return future

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Likewise, where nobody waits for the outcome: what is raised is logged."""
        self.call(function, *args).add_done_callback(_log_failure)

    def close(self) -> None:
        def command() -> None:
            self._closed = True

        self._commands.put(command)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the loaded model; it holds no MLX objects."""
        return self._loaded.tokenizer

    @property
    def eyes(self) -> ImageEncoder | None:
        """What encodes prompts with images, if the model sees."""
        if self._loaded.processor is None:
            return None
        from ollmlx.runner.mlx.vision.prompt import ImageEncoder

        processor = self._loaded.processor
        # Not the tokenizer of other prompts: images take long to prepare, on a thread of their own.
        return ImageEncoder(
            processor, self._mlxlm.with_tokenizer(self._loaded.tokenizer, processor.tokenizer)
        )

    @property
    def blindness(self) -> str:
        """Why the model does not see, if it does not."""
        return self._loaded.blindness

    def prefix_cache(self) -> pb.PrefixCache:
        return self.scheduler.prefix_cache() if self.scheduler is not None else pb.PrefixCache()

    def memory(self) -> pb.Memory:
        """MLX's own counters, which may be read on any thread; zeros before MLX is imported."""
        if self._mlxlm is None:
            return pb.Memory()
        active, peak, pool = self._mlxlm.memory()
        return pb.Memory(
            active_bytes=active,
            peak_bytes=peak,
            pool_bytes=pool,
            kv_cache_bytes=self.counters.kv_cache_bytes,
        )

    def describe_device(self) -> pb.Device:
        """What MLX computes on; may be asked on any thread, after the import."""
        device = self.device
        free = 0 if device.unified else self._mlxlm.free_device_bytes()
        return pb.Device(
            kind=device.kind, total_bytes=device.total_bytes, free_bytes=free, unified=device.unified
        )

    # ---- commands, on the thread

    def with_scheduler(self, function: Callable[[EmbeddingScheduler], T]) -> T | None:
        """For who does not know whether a model is loaded; without one nothing is done."""
        return function(self.scheduler) if self.scheduler is not None else None

    def load(self, request: pb.LoadRequest, progress: Progress, abandoned: threading.Event) -> pb.ModelInfo:
        """Read the model and make its scheduler; what fails leaves no model behind."""
        if self.scheduler is not None:
            raise precondition("this runner holds a model already; a runner loads one model in its life")
        try:
            self._import(progress)
            self._loaded, traits, embedder, self.info = loading.load_model(
                self._mlxlm, request, progress, abandoned
            )
            embeddings = EmbeddingJobs(embedder, self.info.device)
            if traits is None:
                # Made for embeddings: no text, no caches.
                scheduler = EmbeddingScheduler(embeddings, self.counters)
            else:
                from ollmlx.runner.mlx.scheduler import Scheduler

                scheduler = Scheduler(request, self._loaded, traits, self.info, embeddings, self.counters)
            if abandoned.is_set():
                raise cancelled("the load was canceled")
        except BaseException:
            self._loaded = self.info = None
            if self._mlxlm is not None:
                self._mlxlm.release_memory()
            raise
        self.scheduler = scheduler
        return self.info

    def warm_up(self) -> None:
        """Import ahead of the first load. What fails here fails there again, where somebody can be told."""
        try:
            self._import(lambda _: None)
            self._mlxlm.warm_up_device()
        except RunnerError as err:
            log.warning("%s", err.message)

    def _import(self, progress: Progress) -> None:
        """Import MLX on this thread, the only one that may use it."""
        progress(pb.LoadProgress(stage=pb.LoadProgress.STAGE_IMPORT))
        if self._mlxlm is not None:
            return
        try:
            from ollmlx.runner.mlx import mlxlm, scheduler  # noqa: F401
            from ollmlx.runner.mlx.embedding import embedder  # noqa: F401
        except ImportError as err:
            raise precondition(f"the mlx engine cannot be imported: {err}") from err
        self._mlxlm, self.device = mlxlm, mlxlm.describe_device()

    # ---- the loop

    def _run(self) -> None:
        try:
            while not self._closed:
                if self.scheduler is None:
                    self._take()
                else:
                    self._turn(self.scheduler)
        except BaseException:
            # A process that answers Status but never generates again is worse than none: the host notices the
            # death at once, tells its clients why, and starts another.
            log.critical("the engine's loop failed; the runner ends", exc_info=True)
            os._exit(EXIT_ENGINE_FAILED)

    def _turn(self, scheduler: EmbeddingScheduler) -> None:
        if not scheduler.busy:
            # What was cancelled since the last step is forgotten now, and counts no more.
            scheduler.count()
            self._take(scheduler.rest())
        while self._take(0):
            pass
        scheduler.gather(self._take)
        scheduler.admit()
        with self._watchdog:
            scheduler.step()
        scheduler.flush()

    def _take(self, seconds: float | None = None) -> bool:
        """Run the next command, waiting so long for it; False if none came."""
        try:
            command = self._commands.get(timeout=seconds) if seconds != 0 else self._commands.get_nowait()
        except queue.Empty:
            return False
        command()
        return True


def _log_failure(future: concurrent.futures.Future[None]) -> None:
    if not future.cancelled() and (err := future.exception()) is not None:
        log.error("a command of the engine failed", exc_info=err)
