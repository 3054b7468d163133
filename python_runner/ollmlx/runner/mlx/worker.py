"""The thread that owns every MLX object: it loads, prefills, decodes and unloads, and nothing else does.

Its loop is: take commands, admit, step, route. Commands are functions that other threads hand over; between
two steps all of them are run, so a cancelled request is gone within one step. Events of a step leave as one
message per session.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from ollmlx.runner.engine import Progress
from ollmlx.runner.errors import RunnerError, cancelled, exists, internal, invalid, precondition
from ollmlx.runner.mlx import loading
from ollmlx.runner.mlx.bursts import Bursts
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJobs
from ollmlx.runner.mlx.kv_budget import KVBudget
from ollmlx.runner.mlx.outbox import Outbox
from ollmlx.runner.mlx.prefix_cache import Prefix, PrefixCache
from ollmlx.runner.mlx.prefix_files import open_files
from ollmlx.runner.mlx.prompt import PreparedPrompt
from ollmlx.runner.mlx.request import Request, failed_event
from ollmlx.runner.mlx.text import Detokenizer
from ollmlx.runner.mlx.watchdog import Watchdog
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx import mlxlm as mlxlm_module
    from ollmlx.runner.mlx import sampling as sampling_module
    from ollmlx.runner.mlx.engine import EngineSession
    from ollmlx.runner.mlx.vision.prefill import ImagePrefills
    from ollmlx.runner.mlx.vision.prompt import ImageEncoder

log = logging.getLogger(__name__)

T = TypeVar("T")

# Share of the free memory that prefix caches may take when the host does not say, and the most they take.
_PREFIX_MEMORY_SHARE = 1 / 8
_MAX_PREFIX_BYTES = 8 << 30

# Prefixes are written to files when nothing was to do for so long: each turn of a conversation replaces the one before,
# and what is written too early is written in vain. Then so many bytes between two looks at the commands.
_WRITE_AFTER_SECONDS = 30
_IDLE_WRITE_BYTES = 8 << 20

# Exit code of a runner whose engine cannot go on (EX_SOFTWARE).
EXIT_ENGINE_FAILED = 70

# Rows in a batch when the host does not say.
_DEFAULT_ROWS = 32
# Steps between two looks at the size of the KV caches, which costs a walk over all layers.
_MEMORY_CHECK_STEPS = 32


class Worker:
    """Runs on one thread. Its fields are that thread's, but for the counters at the end, which anyone may
    read."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closed = False
        self._watchdog = Watchdog()
        self._mlxlm: mlxlm_module | None = None
        self._sampling: sampling_module | None = None
        self._loaded: mlxlm_module.LoadedModel | None = None
        self._traits: mlxlm_module.CacheTraits | None = None
        self._batch: mlxlm_module.Batch | None = None
        # Prompts with images that are not in the batch yet; made with a model that sees.
        self._image_prefills: ImagePrefills | None = None
        self._max_rows = _DEFAULT_ROWS
        # What was loaded; None while nothing is.
        self.info: pb.ModelInfo | None = None
        # Work of Embed calls; made with the model.
        self.embeddings: EmbeddingJobs | None = None

        self._requests: dict[tuple[EngineSession, int], Request] = {}
        self._waiting: collections.deque[Request] = collections.deque()
        self._rows: dict[int, Request] = {}
        self._adapters: mlxlm_module.AdapterSwitch | None = None
        self._prefixes: PrefixCache | None = None
        # Bytes that KV caches may use altogether; 0: no limit but that of the prefix cache.
        self._budget = KVBudget(0, 0)
        # After a failed step: the row that came back last and has not given a token since.
        self._suspect: Request | None = None
        self._outbox = Outbox()
        self._bursts = Bursts()

        # Read by Status from other threads; single numbers, so a torn read is not possible.
        self.running = 0
        self.queued = 0
        self.steps = 0
        self.last_step_ns = time.monotonic_ns()
        self.kv_cache_bytes = 0
        # What MLX computes on; set by the import.
        self.device: mlxlm_module.Device | None = None

    # ---- called from other threads

    def start(self) -> None:
        self._watchdog.start()
        threading.Thread(target=self._run, name="mlx", daemon=True).start()

    def call(self, function: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        """Run a method of this worker on its thread, between two steps."""
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

    def close(self) -> None:
        def command() -> None:
            self._closed = True

        self._commands.put(command)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the loaded model; it holds no MLX objects."""
        return self._loaded.tokenizer

    @property
    def cuttable(self) -> bool:
        """Whether caches can be shortened, so that no boundaries need to be kept."""
        return self._traits is None or self._traits.cuttable

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
        prefixes = self._prefixes
        if prefixes is None:
            return pb.PrefixCache()
        return pb.PrefixCache(
            bytes=prefixes.bytes,
            entries=len(prefixes),
            hit_tokens=prefixes.hit_tokens,
            miss_tokens=prefixes.miss_tokens,
            files=prefixes.files,
        )

    def memory(self) -> pb.Memory:
        """MLX's own counters, which may be read on any thread; zeros before MLX is imported."""
        if self._mlxlm is None:
            return pb.Memory()
        active, peak, pool = self._mlxlm.memory()
        return pb.Memory(
            active_bytes=active, peak_bytes=peak, pool_bytes=pool, kv_cache_bytes=self.kv_cache_bytes
        )

    def describe_device(self) -> pb.Device:
        """What MLX computes on; may be asked on any thread, after the import."""
        device = self.device
        free = 0 if device.unified else self._mlxlm.free_device_bytes()
        return pb.Device(
            kind=device.kind, total_bytes=device.total_bytes, free_bytes=free, unified=device.unified
        )

    # ---- commands, on the thread

    def load(self, request: pb.LoadRequest, progress: Progress, abandoned: threading.Event) -> pb.ModelInfo:
        """Read the model and make the first batch; what fails leaves no model behind."""
        if self._loaded is not None:
            raise precondition("this runner holds a model already; a runner loads one model in its life")
        try:
            self._import(progress)
            self._loaded, self._traits, embedder, self.info = loading.load_model(
                self._mlxlm, request, progress, abandoned
            )
            self.embeddings = EmbeddingJobs(embedder, self.info.device)
            if self._traits is None:
                # Made for embeddings: no text, no caches.
                return self.info
            self._max_rows = request.num_parallel or _DEFAULT_ROWS
            self._budget = KVBudget(self._traits.bytes_per_token, request.kv_cache_bytes)
            self._adapters = self._mlxlm.AdapterSwitch(self._loaded.model)
            self._prefixes = PrefixCache(
                request.kv_cache_bytes or _default_prefix_bytes(),
                self._mlxlm.CacheOperations(),
                open_files(request, self._mlxlm, self._loaded.model, self.info.device),
            )
            self._batch = self._mlxlm.make_batch(self._loaded, self._traits, self._max_rows)
            if self._loaded.processor is not None:
                from ollmlx.runner.mlx.vision.prefill import ImagePrefills

                self._image_prefills = ImagePrefills(self._loaded.model)
        except BaseException:
            self._loaded = self._batch = self._traits = self.info = self.embeddings = None
            if self._mlxlm is not None:
                self._mlxlm.release_memory()
            raise
        return self.info

    def warm_up(self) -> None:
        """Import ahead of the first load. What fails here fails there again, where somebody can be told."""
        try:
            self._import(lambda _: None)
        except RunnerError as err:
            log.warning("%s", err.message)

    def _import(self, progress: Progress) -> None:
        """Import MLX on this thread, the only one that may use it."""
        progress(pb.LoadProgress(stage=pb.LoadProgress.STAGE_IMPORT))
        if self._mlxlm is not None:
            return
        try:
            from ollmlx.runner.mlx import mlxlm, sampling
            from ollmlx.runner.mlx.embedding import embedder  # noqa: F401
        except ImportError as err:
            raise precondition(f"the mlx engine cannot be imported: {err}") from err
        self._mlxlm, self._sampling, self.device = mlxlm, sampling, mlxlm.describe_device()

    def trim(self, kv_cache_bytes: int) -> int:
        """Change what KV caches may use and give back what is above it; returns what holds."""
        if self._prefixes is None:
            return 0
        self.kv_cache_bytes = self._batch.cache_bytes()
        self._budget.limit = max(kv_cache_bytes, self.kv_cache_bytes, 1)
        self._prefixes.set_limit(self._budget.limit)
        self._bound_prefixes()
        self._mlxlm.release_memory()
        return self._budget.limit

    @property
    def _computed(self) -> list[Request]:
        return [*self._rows.values(), *self._looking]

    def _bound_prefixes(self) -> None:
        left = self._budget.left_for_prefixes(self._computed)
        if left is not None:
            self._prefixes.shrink(left)

    def _free_bytes(self) -> int:
        """Memory that caches could have if they had all of it; what is kept for later counts as free."""
        kept = self._mlxlm.memory()[2] + self._prefixes.bytes
        if self.info.device == "cuda":
            return self._mlxlm.free_device_bytes() + kept
        return psutil.virtual_memory().available + kept

    def _keep_to_budget(self) -> None:
        """Rows grow: when together they have outgrown the budget, the youngest waits again until others have ended. It
        goes on where it was, computed anew or from its prefix."""
        self._bound_prefixes()
        while self._budget.is_overdrawn(list(self._rows.values())):
            request = self._rows.pop(max(self._rows))
            log.info(
                "a request gives way: no memory for its KV cache", extra={"trace_id": request.proto.trace_id}
            )
            self._keep(self._batch.remove(request.uid), request)
            request.uid = None
            self._waiting.appendleft(request)

    def register(self, request: Request) -> None:
        key = (request.session, request.id)
        if key in self._requests:
            error = exists(f"request id {request.id} is in use")
            self._outbox.put(request.session, failed_event(request.id, error))
            return
        self._requests[key] = request
        self._bursts.registered()

    def admit_when_possible(self, request: Request, prompt: PreparedPrompt) -> None:
        """Queue a registered request whose prompt is ready; one that was cancelled meanwhile is dropped."""
        if self._requests.get((request.session, request.id)) is not request:
            return
        request.prompt = prompt
        self._waiting.append(request)

    def fail(self, request: Request, error: RunnerError) -> None:
        if self._forget(request):
            self._outbox.end(request, request.failed(error))

    def cancel(self, session: EngineSession, request_id: int) -> None:
        request = self._requests.get((session, request_id))
        if request is not None:
            self.fail(request, cancelled())

    def close_session(self, session: EngineSession) -> None:
        for request in [r for r in self._requests.values() if r.session is session]:
            self._forget(request)
        self._outbox.drop(session)

    def fail_all(self, error: RunnerError) -> None:
        if self.embeddings is not None:
            self.embeddings.fail_all(error)
        for request in list(self._requests.values()):
            self.fail(request, error)

    def save_prefixes(self, seconds: float) -> None:
        """Write prefixes to files, for that long at most; for a runner that is about to end."""
        if self._prefixes is not None:
            self._prefixes.write_all(seconds)

    # ---- the loop

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take_commands(wait=not self._admitted and not self._waiting and not self._embedding)
                self._gather()
                self._admit()
                self._count()
                with self._watchdog:
                    if self._rows:
                        self._step()
                    if self._looking:
                        self._look()
                    if self._embedding:
                        self._embed()
                    self._write_prefixes()
                self._count()
                self._outbox.flush(soon=self._only_decoding())
        except BaseException:
            # A process that answers Status but never generates again is worse than none: the host notices the
            # death at once, tells its clients why, and starts another.
            log.critical("the engine's loop failed; the runner ends", exc_info=True)
            os._exit(EXIT_ENGINE_FAILED)

    @property
    def _admitted(self) -> int:
        """Requests that are being computed, all with the adapter that the model wears."""
        return len(self._rows) + len(self._looking)

    @property
    def _looking(self) -> list[Request]:
        return self._image_prefills.requests if self._image_prefills else []

    @property
    def _embedding(self) -> bool:
        return self.embeddings is not None and self.embeddings.pending

    def _embed(self) -> None:
        """Compute a piece of the waiting embeddings; rows that wear another adapter end first."""
        if self._adapters is not None:
            adapter = self.embeddings.adapter
            if self._admitted and adapter.name != self._adapters.name:
                return
            try:
                self._wear_adapter(adapter)
            except RunnerError as err:
                self.embeddings.fail_adapter(adapter.name, err)
                return
        self.embeddings.step(decoding=bool(self._rows))
        self.last_step_ns = time.monotonic_ns()

    def _count(self) -> None:
        self.queued = len(self._requests) - self._admitted
        self.running = self._admitted + (self.embeddings.running if self.embeddings is not None else 0)

    def _take_commands(self, wait: bool) -> None:
        while True:
            try:
                command = self._commands.get(block=wait, timeout=self._writing_due() if wait else None)
            except queue.Empty:
                return
            command()
            wait = False

    def _gather(self) -> None:
        """Before the first step after a rest, wait a moment for prompts that can be computed together."""
        if not self._waiting or self._admitted or self._suspect is not None:
            return
        deadline = self._bursts.begin(several=len(self._requests) > 1)
        while (patience := self._bursts.patience(len(self._requests) > len(self._waiting), deadline)) > 0:
            try:
                command = self._commands.get(timeout=patience)
            except queue.Empty:
                return
            command()

    def _writing_due(self) -> float | None:
        """Seconds until prefixes are to be written to files; None while there is nothing to write."""
        if self._prefixes is None or not self._prefixes.unwritten:
            return None
        if self._prefixes.leaving:
            return 0
        return max(0, _WRITE_AFTER_SECONDS - (time.monotonic_ns() - self.last_step_ns) / 1e9)

    def _write_prefixes(self) -> None:
        """Write a piece of the prefixes that memory has no room for, and of all of them when nothing else is to do."""
        if self._prefixes is None:
            return
        if self._rows or self._embedding:
            if self._prefixes.leaving:
                self._prefixes.write(1)
        elif self._writing_due() == 0:
            self._prefixes.write(_IDLE_WRITE_BYTES)

    def _admit(self) -> None:
        while self._waiting and self._admitted < self._max_rows and self._suspect is None:
            wanted = {self._waiting[0].proto.adapter.name}
            if self._embedding:
                wanted.add(self.embeddings.adapter.name)
            if self._admitted and wanted != {self._adapters.name}:
                # In order of arrival: whoever comes later waits behind, else this one might wait for ever.
                return
            if not self._budget.fits(self._waiting[0], self._computed):
                return
            request = self._waiting.popleft()
            try:
                if request.detokenizer is None:
                    self._start(request)
                else:
                    self._insert(request)
                    self._suspect = request
            except RunnerError as err:
                self.fail(request, err)
            except Exception as err:
                log.exception("a request could not be started", extra={"trace_id": request.proto.trace_id})
                self.fail(request, internal(f"the request could not be started: {err}"))

    def _wear_adapter(self, adapter: pb.Adapter) -> None:
        try:
            self._adapters.wear(adapter.name, Path(adapter.path))
        except Exception as err:
            log.exception("an adapter cannot be used", extra={"adapter": adapter.name})
            raise invalid(f"the adapter cannot be used: {' '.join(str(err).split())}") from err

    def _start(self, request: Request) -> None:
        request.prefill_ns = time.monotonic_ns()
        request.tokens = list(request.prompt.tokens)
        if request.prompt.max_new_tokens == 0:
            self._finish(request, request.finished(pb.Finished.REASON_LENGTH))
            return
        self._budget.refuse_beyond(request, self._free_bytes)
        request.detokenizer = Detokenizer(self._mlxlm.decoder(self._loaded.tokenizer), request.prompt.tokens)
        request.cached = self._insert(request)
        progress = request.prefill_event(request.cached, len(request.prompt.tokens))
        self._outbox.put(request.session, progress, urgent=False)

    def _insert(self, request: Request) -> int:
        """Put a request into the batch as a row that continues its tokens, or let its images be computed before;
        returns how many of the tokens are cached."""
        self._wear_adapter(request.proto.adapter)
        prefix = self._find_prefix(request)
        if request.prompt.images is not None:
            return self._image_prefills.start(request, prefix)
        self._join(request, prefix)
        return len(prefix.tokens) if prefix else 0

    def _join(self, request: Request, prefix: Prefix | None, position_shift: int = 0) -> None:
        options = request.proto.options
        vocab_size = self.info.vocab_size
        settings = self._sampling.settings_from_options(options, vocab_size)
        seed = options.seed if options.HasField("seed") and options.seed >= 0 else None
        room = request.prompt.num_ctx - len(request.tokens)
        processors = self._sampling.make_processors(options, vocab_size)
        if request.prompt.constraint is not None:
            request.prompt.constraint.restart(request.output)
        request.uid = self._batch.insert(
            self._mlxlm.NewRow(
                tokens=request.tokens,
                max_tokens=min(request.prompt.max_new_tokens - request.generated, room),
                sampler=self._sampling.make_sampler(settings, seed, request.generated),
                processors=processors,
                constraint=request.prompt.constraint,
                logprobs=request.proto.logprobs,
                prefix=prefix,
                boundaries=request.prompt.boundaries,
                position_shift=position_shift,
            )
        )
        self._rows[request.uid] = request
        self._bound_prefixes()

    def _find_prefix(self, request: Request) -> Prefix | None:
        images = request.prompt.images
        for key, end in images.cache_keys() if images is not None else [("", None)]:
            # The last of the tokens is never looked for.
            tokens = request.tokens if end is None else request.tokens[: end + 1]
            prefix = self._prefixes.find(self._adapters.name + key, tokens)
            if prefix is not None:
                return prefix
        return None

    def _look(self) -> None:
        """Compute a piece of a prompt with images; one that is complete joins the batch."""
        progress = self._image_prefills.step(decoding=any(r.generated for r in self._rows.values()))
        self.last_step_ns = time.monotonic_ns()
        request = progress.request
        for prefix in progress.kept:
            self._keep(prefix, request)
        if progress.error is not None:
            self.fail(request, progress.error)
            return
        if progress.done < progress.total:
            self._outbox.put(request.session, request.prefill_event(progress.done, progress.total))
        if progress.ready is not None:
            try:
                self._join(request, progress.ready, progress.shift)
            except Exception as err:
                log.exception("a request could not be started", extra={"trace_id": request.proto.trace_id})
                self.fail(request, internal(f"the request could not be started: {err}"))

    def _step(self) -> None:
        try:
            prefills, tokens = self._batch.step()
        except Exception as err:
            self._recover(err)
            return
        self.steps += 1
        self.last_step_ns = time.monotonic_ns()
        for progress in prefills:
            request = self._rows.get(progress.uid)
            self._keep(progress.prefix, request)
            if request is not None and progress.done < progress.total:
                self._outbox.put(request.session, request.prefill_event(progress.done, progress.total))
        for token in tokens:
            request = self._rows.get(token.uid)
            self._keep(token.prefix, request)
            if request is None:
                continue
            try:
                self._route(request, token)
            except Exception as err:
                log.exception(
                    "an answer could not be put into text", extra={"trace_id": request.proto.trace_id}
                )
                self.fail(request, internal(f"the answer could not be put into text: {err}"))
        if self.steps % _MEMORY_CHECK_STEPS == 0:
            self.kv_cache_bytes = self._batch.cache_bytes()
            self._keep_to_budget()

    def _route(self, request: Request, token: mlxlm_module.Token) -> None:
        """Turn a sampled token into events, and end the row where the answer ends."""
        if request is self._suspect:
            self._suspect = None
        constraint = request.prompt.constraint
        if constraint is not None and constraint.error is not None:
            self.fail(request, constraint.error)
            return
        request.generated += 1
        request.last_token_ns = self.last_step_ns
        request.first_token_ns = request.first_token_ns or self.last_step_ns
        if token.finish_reason == "stop":
            del self._rows[token.uid]
            self._end(request, pb.Finished.REASON_STOP)
            return
        logprob = None
        if request.proto.logprobs:
            logprob = self._mlxlm.token_logprob(self._loaded.tokenizer, token, request.proto.top_logprobs)
        piece = request.add_token(token.id, logprob)
        if request.has_its_only_call(piece):
            del piece.tool_calls[1:]
        if piece:
            self._outbox.say(request, piece, urgent=request.generated == 1)
        if piece.stop is not None or request.has_its_only_call(piece):
            if token.finish_reason is None:
                self._keep(self._batch.remove(token.uid), request)
            del self._rows[token.uid]
            reason = pb.Finished.REASON_STOP if piece.stop is None else pb.Finished.REASON_STOP_SEQUENCE
            self._finish(request, request.finished(reason, piece.stop or ""))
        elif token.finish_reason == "length":
            del self._rows[token.uid]
            # Images cannot be cut out of what the model has seen.
            shift = request.proto.shift and request.prompt.images is None
            if shift and request.generated < request.prompt.max_new_tokens:
                self._shift(request)
            else:
                self._end(request, pb.Finished.REASON_LENGTH)

    def _shift(self, request: Request) -> None:
        """Make room in a full context: drop the older half after num_keep tokens and prefill what is left."""
        keep = min(max(request.proto.options.num_keep, 0), len(request.tokens) - 1)
        drop = max((len(request.tokens) - keep) // 2, 1)
        request.tokens = request.tokens[:keep] + request.tokens[keep + drop :]
        self._insert(request)

    def _end(self, request: Request, reason: pb.Finished.Reason) -> None:
        piece = request.finish_text()
        if piece or request.has_pending:
            self._outbox.say(request, piece)
        if piece.stop is not None:
            reason = pb.Finished.REASON_STOP_SEQUENCE
        self._finish(request, request.finished(reason, piece.stop or ""))

    def _finish(self, request: Request, event: pb.Event) -> None:
        self._forget(request)
        self._outbox.end(request, event)

    def _forget(self, request: Request) -> bool:
        """Take a request out of wherever it is; False when it had ended already."""
        if self._requests.pop((request.session, request.id), None) is None:
            return False
        if request is self._suspect:
            self._suspect = None
        if request in self._waiting:
            self._waiting.remove(request)
        elif self._rows.pop(request.uid, None) is not None:
            self._keep(self._batch.remove(request.uid), request)
        elif self._looking:
            self._keep(self._image_prefills.remove(request), request)
        return True

    def _keep(self, prefix: Prefix | None, request: Request | None) -> None:
        """Store what a row has computed for whoever begins with the same tokens, and the same images."""
        if prefix is None or request is None:
            return
        images = request.prompt.images
        key = images.cache_key(len(prefix.tokens)) if images is not None else ""
        self._prefixes.add(self._adapters.name + key, prefix)
        self._bound_prefixes()

    def _recover(self, err: Exception) -> None:
        """Go on after a failed step, which has corrupted the batch: its rows would repeat a token.

        All rows go into a new batch, prefilled from their token ids; nothing was lost, since what a row said
        stands in its request. Which of them made the step fail is not known, so they come back one at a time,
        the next when the one before has given a token. If the step fails again it was the newcomer, and that
        one fails.
        """
        log.exception("an engine step failed", extra={"rows": len(self._rows)})
        rows, self._rows = list(self._rows.values()), {}
        culprit = rows[0] if len(rows) == 1 else self._suspect
        self._suspect = self._batch = None
        self._mlxlm.release_memory()
        self._batch = self._mlxlm.make_batch(self._loaded, self._traits, self._max_rows)
        for request in rows:
            request.uid = None
        self._waiting.extendleft(r for r in reversed(rows) if r is not culprit)
        if culprit is not None:
            self.fail(culprit, internal(f"the engine failed while generating: {err}"))

    def _only_decoding(self) -> bool:
        """Whether the next step is a decode step for sure, so that what is held goes out soon."""
        if not self._rows or self._waiting or self._looking or self._suspect is not None:
            return False
        return not self._batch.prefilling


def _default_prefix_bytes() -> int:
    return min(int(psutil.virtual_memory().available * _PREFIX_MEMORY_SHARE), _MAX_PREFIX_BYTES)
