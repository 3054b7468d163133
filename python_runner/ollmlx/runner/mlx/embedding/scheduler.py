"""What the engine's thread computes next with a model that was made for embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.counters import Counters
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJobs
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx.engine import EngineSession


class EmbeddingScheduler:
    """Made with a loaded model and used on the engine's thread only, but for what says otherwise. Its loop calls
    `gather`, `admit`, `step` and `flush`, in this order, again and again while it is `busy`, else after each command.

    This one knows embeddings and nothing else: text is what its subclass adds."""

    # Whether caches can be shortened, so that no boundaries need to be kept; may be read on any thread.
    cuttable = True

    def __init__(self, embeddings: EmbeddingJobs, counters: Counters) -> None:
        self.embeddings = embeddings
        self._counters = counters

    # ---- the loop

    @property
    def busy(self) -> bool:
        """Whether there is something to compute now."""
        return self.embeddings.pending

    @property
    def drained(self) -> bool:
        """Whether nothing is left to do for anyone."""
        return not self.embeddings.pending

    def rest(self) -> float | None:
        """Seconds until there is something to do, while not busy; None: not before a command comes."""
        return None

    def gather(self, take: Callable[[float], bool]) -> None:
        """Wait a moment for more to compute together, by `take`: it runs the next command, and returns False if none
        came within the seconds given."""

    def admit(self) -> None:
        """Let in what may be computed now."""
        self.count()

    def step(self) -> None:
        """Compute a piece."""
        if self.embeddings.pending:
            self.embeddings.step(decoding=False)
            self._counters.last_step_ns = time.monotonic_ns()
        self.count()

    def flush(self) -> None:
        """Send what the step has to tell."""

    def count(self) -> None:
        """Write the counters."""
        self._counters.running = self.embeddings.running

    # ---- commands

    def cancel(self, session: EngineSession, request_id: int) -> None:
        """End a request for text; there are none."""

    def close_session(self, session: EngineSession) -> None:
        """End all requests of a session, which hears no more of them."""

    def fail_all(self, error: RunnerError) -> None:
        self.embeddings.fail_all(error)

    def trim(self, kv_cache_bytes: int) -> int:
        """Change what KV caches may use and give back what is above it; returns what holds."""
        return 0

    def save_prefixes(self, seconds: float) -> None:
        """Write prefixes to files, for that long at most; for a runner that is about to end."""

    # ---- on any thread

    def prefix_cache(self) -> pb.PrefixCache:
        return pb.PrefixCache()
