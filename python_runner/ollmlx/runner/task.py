"""Processes that hold no model: they are started, watched and ended like a runner, and serve a service of their own.

A task is one entry of `engines.ENGINES`. Of the Runner service it answers Status and Shutdown only.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.v1 import runner_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)


class Task:
    """Made once for its process. `drain` is awaited before the process ends, `close` called after that."""

    def add_services(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError

    async def drain(self, seconds: float) -> None:
        """Let running calls go on for that long at most."""

    def close(self) -> None:
        """Give back what the task holds; idempotent."""


class TaskService(pb_grpc.RunnerServicer):
    """What the supervisor asks of every process; sets `stopped` when Shutdown has been answered for."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.stopped = asyncio.Event()

    async def Status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.StatusResponse:
        return pb.StatusResponse(state=pb.StatusResponse.STATE_IDLE)

    async def Shutdown(
        self, request: pb.ShutdownRequest, context: grpc.aio.ServicerContext
    ) -> pb.ShutdownResponse:
        await self._task.drain(request.drain_ns / 1e9)
        self.stopped.set()
        return pb.ShutdownResponse()


async def run_blocking(
    context: grpc.aio.ServicerContext, function: Callable[..., Any], *arguments: Any
) -> Any:
    """The result of a call that blocks, made on a thread; a RunnerError becomes the status of the RPC."""
    return await answer(asyncio.to_thread(functools.partial(function, *arguments)), context)


async def answer(result: Awaitable[Any], context: grpc.aio.ServicerContext) -> Any:
    """Await a result and turn a RunnerError into the status of the RPC."""
    try:
        return await result
    except RunnerError as err:
        await context.abort(err.code, err.message)
    except Exception as err:
        log.exception("unexpected failure")
        await context.abort(grpc.StatusCode.INTERNAL, f"internal error: {err}")
