"""The gRPC front by itself, with an engine that only emits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ollmlx.runner.engine import Emit
from ollmlx.runner.service import RunnerService
from ollmlx.runner.v1 import runner_pb2 as pb


class Emitting:
    """An engine and its session: says something for each request at once."""

    def open_session(self, emit: Emit) -> Emitting:
        self._emit = emit
        return self

    def submit(self, request_id: int, request: pb.GenerateRequest) -> None:
        self._emit(pb.StepEvents(events=[pb.Event(request_id=request_id)]))

    def close(self) -> None:
        self.closed = True


def test_a_session_ends_though_its_last_events_wait_to_be_sent() -> None:
    async def requests() -> AsyncIterator[pb.SessionRequest]:
        for request_id in range(1, 4):
            yield pb.SessionRequest(request_id=request_id)

    async def session() -> list[int]:
        engine = Emitting()
        got = []
        async for events in RunnerService(engine).Session(requests(), None):
            got += [e.request_id for e in events.events]
            # A slow transport: meanwhile everything else happens.
            await asyncio.sleep(0.05)
        assert engine.closed
        return got

    assert asyncio.run(asyncio.wait_for(session(), 10)) == [1, 2, 3]
