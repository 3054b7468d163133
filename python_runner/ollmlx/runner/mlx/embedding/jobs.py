"""Embedding work of the engine's thread, done in pieces between decode steps.

A job is the inputs of one call. Rows of several jobs are computed together where their lengths are alike; a piece is
bounded in tokens, and smaller while text is being generated, which waits for it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ollmlx.runner.errors import RunnerError, internal
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    import numpy as np

    from ollmlx.runner.mlx.embedding.embedder import Embedder

log = logging.getLogger(__name__)

# Tokens of a piece, padding included: while text is generated, and while nothing is. A CPU gains nothing from larger
# ones, and takes seconds for them.
PIECE_BUSY = 256
PIECE_IDLE_CPU = 256
PIECE_IDLE_GPU = 8192
# A row joins others that are at most this many times as long: the rest of it would be padding.
_MOST_PADDING = 2


class EmbeddingJob:
    """The inputs of one call. Cancelling `future` ends it; its result is one vector per row."""

    def __init__(self, rows: list[list[int]], adapter: pb.Adapter) -> None:
        self.rows = rows
        # What the model has to wear; without a name: nothing.
        self.adapter = adapter
        self.future: concurrent.futures.Future[list[np.ndarray]] = concurrent.futures.Future()
        # After a failure that may have been another job's: this one shares no computation any more.
        self.alone = False
        self.vectors: list[np.ndarray | None] = [None] * len(rows)
        # Indexes of rows that have not been begun, the longest last.
        self.waiting = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self.missing = len(rows)

    def add(self, index: int, vector: np.ndarray) -> None:
        self.vectors[index] = vector
        self.missing -= 1
        if self.missing == 0:
            self.finish()

    def finish(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self.vectors)

    def may_share(self, other: EmbeddingJob) -> bool:
        """Whether rows of both may be in one computation."""
        return not (self.alone or other.alone) and self.adapter.name == other.adapter.name

    def fail(self, error: RunnerError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class EmbeddingJobs:
    """The jobs of one model; belongs to the engine's thread."""

    def __init__(self, embedder: Embedder, device: str) -> None:
        # What it says of itself may be read on any thread.
        self.embedder = embedder
        self._idle_tokens = PIECE_IDLE_CPU if device == "cpu" else PIECE_IDLE_GPU
        self._piece_tokens = self._idle_tokens
        # Jobs with rows that have not been begun; the first is served next.
        self._jobs: collections.deque[EmbeddingJob] = collections.deque()
        # What is being computed: rows as pairs of job and index.
        self._members: list[tuple[EmbeddingJob, int]] = []
        self._computation: Iterator[np.ndarray | None] | None = None

    def add(self, job: EmbeddingJob) -> None:
        if job.rows:
            self._jobs.append(job)
        else:
            job.finish()

    def fail_all(self, error: RunnerError) -> None:
        for job in {*self._jobs, *(job for job, _ in self._members)}:
            job.fail(error)
        self._jobs.clear()
        self._drop()

    @property
    def pending(self) -> bool:
        """Whether there is anything to compute; what was cancelled meanwhile is forgotten."""
        if self._computation is not None and all(job.future.cancelled() for job, _ in self._members):
            self._drop()
        while self._jobs and self._jobs[0].future.cancelled():
            self._jobs.popleft()
        return self._computation is not None or bool(self._jobs)

    @property
    def running(self) -> int:
        """Jobs that are not done: they take turns."""
        return len({*self._jobs, *(job for job, _ in self._members)})

    @property
    def adapter(self) -> pb.Adapter:
        """What the next piece needs the model to wear; only while something is pending."""
        return self._members[0][0].adapter if self._members else self._jobs[0].adapter

    def fail_adapter(self, name: str, error: RunnerError) -> None:
        """End all jobs that need this adapter."""
        concerned = {j for j in (*self._jobs, *(j for j, _ in self._members)) if j.adapter.name == name}
        if self._members and self._members[0][0] in concerned:
            self._drop()
        self._jobs = collections.deque(j for j in self._jobs if j not in concerned)
        for job in concerned:
            job.fail(error)

    def step(self, decoding: bool) -> None:
        """Compute one piece, if there is anything to compute. Never raises: what fails is a job."""
        self._piece_tokens = PIECE_BUSY if decoding else self._idle_tokens
        if not self.pending:
            return
        if self._computation is None:
            self._begin()
        if self._computation is None:
            return
        try:
            vectors = next(self._computation)
        except Exception as err:
            self._fail(err)
            return
        if vectors is None:
            return
        members = self._members
        self._drop()
        for (job, index), vector in zip(members, vectors, strict=True):
            job.add(index, vector)

    def _begin(self) -> None:
        """Choose the rows of the next computation: the first job's, and others' while there is room."""
        longest, shortest = 0, sys.maxsize
        for job in list(self._jobs):
            if job.future.cancelled():
                self._jobs.remove(job)
                continue
            if self._members and not self._members[0][0].may_share(job):
                continue
            while job.waiting:
                length = len(job.rows[job.waiting[-1]])
                most, least = max(longest, length), min(shortest, length)
                full = (len(self._members) + 1) * most > self._piece_tokens
                if self._members and (full or most > _MOST_PADDING * least):
                    break
                longest, shortest = most, least
                self._members.append((job, job.waiting.pop()))
            if not job.waiting:
                self._jobs.remove(job)
        if not self._members:
            return
        if self._jobs and self._jobs[0] is self._members[0][0]:
            # Whoever comes next goes first then: a long list does not keep others waiting.
            self._jobs.rotate(-1)
        rows = [job.rows[i] for job, i in self._members]
        self._computation = self.embedder.compute(rows, lambda: self._piece_tokens // len(rows))

    def _fail(self, err: Exception) -> None:
        jobs = {job for job, _ in self._members}
        members = self._members
        self._drop()
        if len(jobs) > 1:
            # Whose row it was is not known: each is computed again on its own.
            log.warning("embeddings computed together failed, each is tried alone", exc_info=err)
            for job, index in reversed(members):
                job.alone = True
                job.waiting.append(index)
            self._jobs.extend(job for job in jobs if job not in self._jobs)
            return
        [job] = jobs
        if job in self._jobs:
            self._jobs.remove(job)
        if isinstance(err, RunnerError):
            job.fail(err)
            return
        log.error("embeddings could not be computed", exc_info=err)
        job.fail(internal(f"the embeddings could not be computed: {err}"))

    def _drop(self) -> None:
        self._members, self._computation = [], None
