"""What every engine offers to the gRPC front; the front knows nothing else of it.

Lifecycle of an Engine: made idle, `load` once, then any number of sessions and calls, then `close`. The
methods are called on the front's event loop and must not block it: what takes time is awaited, what the
engine reports it reports through the callbacks it was given, on any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ollmlx.runner.v1 import runner_pb2 as pb

# Takes the events of one engine step. Called on the engine's own thread; must not block.
Emit = Callable[[pb.StepEvents], None]
# Takes one message of a load's progress, likewise.
Progress = Callable[[pb.LoadProgress], None]


class Session(Protocol):
    """The requests of one host connection. Events of its requests go to the Emit it was opened with."""

    def submit(self, request_id: int, request: pb.GenerateRequest) -> None:
        """Start a request. Whatever is wrong with it is reported as its Failed event, never raised."""

    def cancel(self, request_id: int) -> None:
        """End a request within one engine step; an id that has ended already is ignored."""

    def close(self) -> None:
        """Cancel all that is left; no event is emitted afterwards."""


class Engine(Protocol):
    """One model and what generates with it. Errors are RunnerError."""

    def warm_up(self) -> None:
        """Begin to import what a load will need, without a model; returns at once."""

    async def load(self, request: pb.LoadRequest, progress: Progress) -> pb.ModelInfo:
        """Read the model; cancelling the coroutine abandons the load."""

    def open_session(self, emit: Emit) -> Session: ...

    async def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse: ...

    async def rerank(self, request: pb.RerankRequest) -> pb.RerankResponse: ...

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse: ...

    async def detokenize(self, request: pb.DetokenizeRequest) -> pb.DetokenizeResponse: ...

    async def trim(self, request: pb.TrimRequest) -> pb.TrimResponse:
        """Change what KV caches may use, and give back what is above it."""

    def status(self) -> pb.StatusResponse:
        """A snapshot from counters; never waits for the engine."""

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait that long at most for running ones, fail the rest with UNAVAILABLE."""

    async def save(self, seconds: float) -> None:
        """Write what is to outlive the engine, such as prefix caches, for that long at most; after `drain`."""

    def close(self) -> None:
        """End the engine's threads; idempotent."""
