"""The requests of a loaded model: which of them are computed, and what becomes of what a step computed."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ollmlx.runner.errors import RunnerError, cancelled, exists, internal, invalid
from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.bursts import Bursts
from ollmlx.runner.mlx.counters import Counters
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJobs
from ollmlx.runner.mlx.embedding.scheduler import EmbeddingScheduler
from ollmlx.runner.mlx.kv_budget import KVBudget
from ollmlx.runner.mlx.outbox import Outbox
from ollmlx.runner.mlx.prefix_cache import Prefix, PrefixCache, default_bytes
from ollmlx.runner.mlx.prefix_files import open_files
from ollmlx.runner.mlx.prompt import PreparedPrompt
from ollmlx.runner.mlx.request import Request, failed_event
from ollmlx.runner.mlx.rows import make_row
from ollmlx.runner.mlx.text import Detokenizer
from ollmlx.runner.mlx.turns import Turns
from ollmlx.runner.mlx.vision.prefill import ImagePrefills
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx.engine import EngineSession

log = logging.getLogger(__name__)

# Rows in a batch when the host does not say.
_DEFAULT_ROWS = 32
# Steps between two looks at the size of the KV caches, which costs a walk over all layers.
_MEMORY_CHECK_STEPS = 32


class Scheduler(EmbeddingScheduler):
    """Requests wait, are admitted to the batch as its rows, and leave it with their answer; what they computed is kept
    for others. Embeddings are computed between two steps. All that computes at a time wears the same adapter."""

    def __init__(
        self,
        request: pb.LoadRequest,
        loaded: mlxlm.LoadedModel,
        traits: mlxlm.CacheTraits,
        info: pb.ModelInfo,
        embeddings: EmbeddingJobs,
        counters: Counters,
    ) -> None:
        super().__init__(embeddings, counters)
        self.cuttable = traits.cuttable
        self._loaded = loaded
        self._traits = traits
        self._info = info
        self._max_rows = request.num_parallel or _DEFAULT_ROWS
        self._adapters = mlxlm.AdapterSwitch(loaded.model)
        self._budget = KVBudget(traits.bytes_per_token, request.kv_cache_bytes)
        self._prefixes = PrefixCache(
            request.kv_cache_bytes or default_bytes(),
            mlxlm.CacheOperations(),
            open_files(request, mlxlm, loaded.model, info.device),
        )

        # All requests that have not ended; each is being prepared, or in one of the three that follow.
        self._requests: dict[tuple[EngineSession, int], Request] = {}
        self._waiting: collections.deque[Request] = collections.deque()
        self._rows: dict[int, Request] = {}
        # Prompts with images that are not in the batch yet.
        self._image_prefills = ImagePrefills(loaded.model)
        # After a failed step: the row that came back last and has not given a token since.
        self._suspect: Request | None = None
        self._outbox = Outbox()
        self._batch = self._make_batch()
        self._bursts = Bursts()
        self._turns = Turns()
        # When the rows that there are began to be admitted.
        self._turn_began_ns = 0

    # ---- the loop

    @property
    def busy(self) -> bool:
        return bool(self._admitted or self._waiting or self.embeddings.pending)

    @property
    def drained(self) -> bool:
        return not self._requests and super().drained

    def rest(self) -> float | None:
        return self._prefixes.writing_due((time.monotonic_ns() - self._counters.last_step_ns) / 1e9)

    def gather(self, take: Callable[[float], bool]) -> None:
        """Before the first step after a rest, wait a moment for prompts that can be computed together."""
        if not self._waiting or self._admitted or self._suspect is not None:
            return
        began = self._bursts.begin(several=len(self._requests) > 1)
        while (patience := self._bursts.patience(len(self._requests) > len(self._waiting), began)) > 0:
            if not take(patience):
                return

    def admit(self) -> None:
        self._admit()
        self.count()

    def step(self) -> None:
        if self._rows:
            self._step()
        if self._image_prefills:
            self._look()
        if self.embeddings.pending:
            self._embed()
        self._write_prefixes()
        self.count()

    def flush(self) -> None:
        self._outbox.flush(soon=self._only_decoding())

    @property
    def _admitted(self) -> int:
        """Requests that are being computed, all with the adapter that the model wears."""
        return len(self._rows) + len(self._image_prefills)

    def count(self) -> None:
        self._counters.queued = len(self._requests) - self._admitted
        self._counters.running = self._admitted + self.embeddings.running

    def _only_decoding(self) -> bool:
        """Whether the next step is a decode step for sure, so that what is held goes out soon."""
        if not self._rows or self._waiting or self._image_prefills or self._suspect is not None:
            return False
        return not self._batch.prefilling

    def _write_prefixes(self) -> None:
        """Write a piece of the prefixes that memory has no room for, and of all of them when nothing else is to do."""
        if self._rows or self.embeddings.pending:
            self._prefixes.write_leaving()
        elif self.rest() == 0:
            self._prefixes.write_idle()

    # ---- commands

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
        super().fail_all(error)
        for request in list(self._requests.values()):
            self.fail(request, error)

    def trim(self, kv_cache_bytes: int) -> int:
        self._counters.kv_cache_bytes = self._batch.cache_bytes()
        self._budget.limit = max(kv_cache_bytes, self._counters.kv_cache_bytes, 1)
        self._prefixes.set_limit(self._budget.limit)
        self._image_prefills.forget_features()
        self._bound_prefixes()
        mlxlm.release_memory()
        return self._budget.limit

    def save_prefixes(self, seconds: float) -> None:
        self._prefixes.write_all(seconds)

    def prefix_cache(self) -> pb.PrefixCache:
        return self._prefixes.status()

    # ---- memory

    @property
    def _computed(self) -> list[Request]:
        return [*self._rows.values(), *self._image_prefills.requests]

    def _bound_prefixes(self) -> None:
        left = self._budget.left_for_prefixes(self._computed)
        if left is not None:
            self._prefixes.shrink(left)

    def _free_bytes(self) -> int:
        """Memory that caches could have if they had all of it; what is kept for later counts as free."""
        return mlxlm.available_bytes(self._info.device) + self._prefixes.bytes

    def _keep_to_budget(self) -> None:
        """Rows grow: when together they have outgrown the budget, the youngest waits again until others have ended. It
        goes on where it was, computed anew or from its prefix."""
        self._bound_prefixes()
        while self._budget.is_overdrawn(list(self._rows.values())):
            request = self._rows[max(self._rows)]
            log.info(
                "a request gives way: no memory for its KV cache", extra={"trace_id": request.proto.trace_id}
            )
            self._take_out(request)
            self._waiting.appendleft(request)

    # ---- into the batch

    def _admit(self) -> None:
        if self._must_wait():
            return
        while self._waiting and self._admitted < self._max_rows and self._suspect is None:
            wanted = {self._waiting[0].proto.adapter.name}
            if self.embeddings.pending:
                wanted.add(self.embeddings.adapter.name)
            if self._admitted and wanted != {self._adapters.name}:
                # In order of arrival: whoever comes later waits behind.
                return
            if not self._budget.fits(self._waiting[0], self._computed):
                return
            request = self._waiting.popleft()
            try:
                if request.detokenizer is None:
                    self._start(request)
                else:
                    self._insert(request)
                    if request.on_trial:
                        self._suspect = request
            except RunnerError as err:
                self.fail(request, err)
            except Exception as err:
                log.exception("a request could not be started", extra={"trace_id": request.proto.trace_id})
                self.fail(request, internal(f"the request could not be started: {err}"))

    def _must_wait(self) -> bool:
        """Let those that compute make way for others that need another adapter, when it is time; returns whether it is
        now the turn of embeddings and not of requests."""
        embeddings = self.embeddings.adapter.name if self.embeddings.pending else None
        if not self._admitted:
            self._turn_began_ns = time.monotonic_ns()
            if not self._waiting or embeddings in (None, self._waiting[0].proto.adapter.name):
                return False
            return self._turns.embeddings_go_first()
        worn = self._adapters.name
        requests_wait = bool(self._waiting) and self._waiting[0].proto.adapter.name != worn
        if self._turns.rows_are_over(requests_wait, embeddings not in (None, worn), self._has_progressed):
            # They go on where they were, behind those that wait.
            while self._rows or self._image_prefills:
                request = self._computed[0]
                self._take_out(request)
                self._waiting.append(request)
            return self._must_wait()
        return False

    def _has_progressed(self) -> bool:
        """Whether this turn has given a token: a prompt may have to be computed anew, and would never be done else."""
        if self._suspect is not None:
            return False
        return any(r.last_token_ns > self._turn_began_ns for r in self._rows.values())

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
        request.detokenizer = Detokenizer(mlxlm.decoder(self._loaded.tokenizer), request.prompt.tokens)
        request.cached = self._insert(request)
        progress = request.prefill_event(request.cached, len(request.prompt.tokens))
        self._outbox.put(request.session, progress, urgent=False)

    def _insert(self, request: Request) -> int:
        """Put a request into the batch as a row that continues its tokens, or let its images be computed before;
        returns how many of the tokens are cached."""
        self._wear_adapter(request.proto.adapter)
        prefix = self._prefixes.find_first(self._adapters.name, request.prompt.cache_keys(), request.tokens)
        if request.prompt.images is not None:
            return self._image_prefills.start(request, prefix)
        self._join(request, prefix)
        return len(prefix.tokens) if prefix else 0

    def _join(self, request: Request, prefix: Prefix | None, position_shift: int = 0) -> None:
        row = make_row(request, prefix, position_shift, self._info.vocab_size)
        request.uid = self._batch.insert(row)
        self._rows[request.uid] = request
        self._bound_prefixes()

    # ---- steps

    def _embed(self) -> None:
        """Compute a piece of the waiting embeddings; rows that wear another adapter end first."""
        adapter = self.embeddings.adapter
        if self._admitted and adapter.name != self._adapters.name:
            return
        try:
            self._wear_adapter(adapter)
        except RunnerError as err:
            self.embeddings.fail_adapter(adapter.name, err)
            return
        self.embeddings.step(decoding=bool(self._rows))
        self._counters.last_step_ns = time.monotonic_ns()

    def _look(self) -> None:
        """Compute a piece of a prompt with images; one that is complete joins the batch."""
        progress = self._image_prefills.step(decoding=any(r.generated for r in self._rows.values()))
        self._counters.last_step_ns = time.monotonic_ns()
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
        counters = self._counters
        counters.steps += 1
        now = counters.last_step_ns = time.monotonic_ns()
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
                self._route(request, token, now)
            except Exception as err:
                log.exception(
                    "an answer could not be put into text", extra={"trace_id": request.proto.trace_id}
                )
                self.fail(request, internal(f"the answer could not be put into text: {err}"))
        if counters.steps % _MEMORY_CHECK_STEPS == 0:
            counters.kv_cache_bytes = self._batch.cache_bytes()
            self._keep_to_budget()

    def _route(self, request: Request, token: mlxlm.Token, now: int) -> None:
        """Turn a sampled token into events, and end the row where the answer ends."""
        if request is self._suspect:
            self._suspect, request.on_trial = None, False
        constraint = request.prompt.constraint
        if constraint is not None and constraint.error is not None:
            self.fail(request, constraint.error)
            return
        request.generated += 1
        request.last_token_ns = now
        request.first_token_ns = request.first_token_ns or now
        if token.finish_reason == "stop":
            del self._rows[token.uid]
            self._end(request, pb.Finished.REASON_STOP)
            return
        logprob = None
        if request.proto.logprobs:
            logprob = mlxlm.token_logprob(self._loaded.tokenizer, token, request.proto.top_logprobs)
        piece = request.add_token(token.id, logprob)
        if request.has_its_only_call(piece):
            del piece.tool_calls[1:]
        if piece:
            self._outbox.say(request, piece, urgent=request.generated == 1)
        if piece.stop is not None or request.has_its_only_call(piece):
            if token.finish_reason is None:
                self._take_out(request)
            else:
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
        """Make room in a full context and prefill what is left."""
        request.drop_half()
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
        key = (request.session, request.id)
        # There may be another one of this id: a client's mistake, or the first is gone but for its preparation.
        if self._requests.get(key) is not request:
            return False
        del self._requests[key]
        request.ended = True
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._take_out(request)
        return True

    def _take_out(self, request: Request) -> None:
        """Take a request out of what is computed, if it is there; what it has computed is kept."""
        if request is self._suspect:
            self._suspect = None
        row = self._rows.pop(request.uid, None) is not None
        try:
            prefix = self._batch.remove(request.uid) if row else self._image_prefills.remove(request)
        except Exception:
            # No memory to copy its cache, say. What is left of the batch is not known.
            log.exception("a request could not be taken out", extra={"trace_id": request.proto.trace_id})
            prefix = None
            if row:
                self._rebuild()
        request.uid = None
        self._keep(prefix, request)

    def _keep(self, prefix: Prefix | None, request: Request | None) -> None:
        """Store what a row has computed for whoever begins with the same tokens, and the same images."""
        if prefix is None or request is None:
            return
        self._prefixes.add(self._adapters.name + request.prompt.cache_key(len(prefix.tokens)), prefix)
        self._bound_prefixes()

    def _recover(self, err: Exception) -> None:
        """Go on after a failed step, which has corrupted the batch: its rows would repeat a token.

        Which of them made the step fail is not known, so they come back one at a time, the next when the one before
        has given a token. If the step fails again it was the newcomer, and that one fails.
        """
        log.exception("an engine step failed", extra={"rows": len(self._rows)})
        rows = list(self._rows.values())
        # One whose images are computed is no row yet.
        culprit = rows[0] if len(rows) == 1 else next((r for r in rows if r is self._suspect), None)
        self._rebuild()
        if culprit is not None:
            self.fail(culprit, internal(f"the engine failed while generating: {err}"))

    def _rebuild(self) -> None:
        """Put all rows into a new batch, prefilled from their token ids; nothing is lost, since what a row said stands
        in its request."""
        rows, self._rows = list(self._rows.values()), {}
        for request in rows:
            request.uid, request.on_trial = None, True
            if request is self._suspect:
                self._suspect = None
        self._waiting.extendleft(reversed(rows))
        self._batch = None
        mlxlm.release_memory()
        self._batch = self._make_batch()

    def _make_batch(self) -> mlxlm.Batch:
        return mlxlm.make_batch(self._loaded, self._traits)
