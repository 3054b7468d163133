"""The gRPC front of a runner: it moves messages between the socket and the engine and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from ollmlx.runner.engine import Engine, Session
from ollmlx.runner.task import answer
from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.v1 import runner_pb2_grpc as pb_grpc

_NANOSECONDS = 1_000_000_000


class RunnerService(pb_grpc.RunnerServicer):
    """Serves one engine; sets `stopped` when Shutdown has been answered for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.stopped = asyncio.Event()

    async def Load(
        self, request: pb.LoadRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.LoadProgress]:
        loop = asyncio.get_running_loop()
        outbox: asyncio.Queue[pb.LoadProgress | None] = asyncio.Queue()

        def progress(message: pb.LoadProgress) -> None:
            loop.call_soon_threadsafe(outbox.put_nowait, message)

        task = asyncio.create_task(self._engine.load(request, progress))
        task.add_done_callback(lambda _: outbox.put_nowait(None))
        try:
            while (message := await outbox.get()) is not None:
                yield message
            model = await answer(task, context)
            yield pb.LoadProgress(stage=pb.LoadProgress.STAGE_READY, model=model)
        finally:
            task.cancel()

    async def Session(
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StepEvents]:
        loop = asyncio.get_running_loop()
        outbox: asyncio.Queue[pb.StepEvents | None] = asyncio.Queue()

        def emit(events: pb.StepEvents) -> None:
            loop.call_soon_threadsafe(outbox.put_nowait, events)

        session = self._engine.open_session(emit)
        reader = asyncio.create_task(_read_requests(request_iterator, session))
        reader.add_done_callback(lambda _: outbox.put_nowait(None))
        try:
            while (events := await outbox.get()) is not None:
                # A message has a fixed cost: what gathered while the last one was written goes out as one.
                while not outbox.empty():
                    more = outbox.get_nowait()
                    if more is None:
                        outbox.put_nowait(None)
                        break
                    events.MergeFrom(more)
                yield events
        finally:
            session.close()
            reader.cancel()

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        return await answer(self._engine.embed(request), context)

    async def Rerank(self, request: pb.RerankRequest, context: grpc.aio.ServicerContext) -> pb.RerankResponse:
        return await answer(self._engine.rerank(request), context)

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.TokenizeResponse:
        return await answer(self._engine.tokenize(request), context)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        return await answer(self._engine.detokenize(request), context)

    async def Status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.StatusResponse:
        return self._engine.status()

    async def Trim(self, request: pb.TrimRequest, context: grpc.aio.ServicerContext) -> pb.TrimResponse:
        return await answer(self._engine.trim(request), context)

    async def Shutdown(
        self, request: pb.ShutdownRequest, context: grpc.aio.ServicerContext
    ) -> pb.ShutdownResponse:
        await self._engine.drain(request.drain_ns / _NANOSECONDS)
        if request.save_ns:
            await self._engine.save(request.save_ns / _NANOSECONDS)
        self.stopped.set()
        return pb.ShutdownResponse()


async def _read_requests(requests: AsyncIterator[pb.SessionRequest], session: Session) -> None:
    async for message in requests:
        if message.WhichOneof("action") == "cancel":
            session.cancel(message.request_id)
        else:
            session.submit(message.request_id, message.generate)
