"""A runner without a model, written from docs/runner-protocol.md alone: it shares no code with ollmlx.runner but
the watchdog, for a step that hangs.

The Go host is tested against it with a real Python process: grpcio's server, Python's signals and its exit. Options
tell it how to misbehave; the Go fake (go/internal/runner/runnertest) knows more ways. It echoes the prompt, one word
per step.
"""

# ruff: noqa: E402 -- the lifeline must be watched before anything else is imported.

import os
import sys
import threading


def lifeline():
    """End with the host: its end of the pipe closes when it does."""
    os.read(3, 1)
    os._exit(0)


threading.Thread(target=lifeline, daemon=True).start()

import argparse
import asyncio
import json
import platform
import signal

import grpc

from ollmlx.runner.mlx.watchdog import Watchdog
from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.v1 import runner_pb2_grpc as pb_grpc


class FakeRunner(pb_grpc.RunnerServicer):
    def __init__(self, options):
        self.options = options
        self.model = None
        self.loading = False
        self.running = {}
        self.steps = 0
        self.stopped = asyncio.Event()
        self.watchdog = Watchdog()
        self.watchdog.start()

    async def Load(self, request, context):
        self.loading = True
        yield pb.LoadProgress(stage=pb.LoadProgress.STAGE_WEIGHTS, bytes_total=1)
        crash(self.options, "load")
        for step in range(self.options.load_steps):
            await asyncio.sleep(0.1)
            yield pb.LoadProgress(
                stage=pb.LoadProgress.STAGE_WEIGHTS, bytes_done=step, bytes_total=self.options.load_steps
            )
        if self.options.hang == "load":
            await asyncio.Event().wait()
        self.model = pb.ModelInfo(architecture="fake", context_length=2048, device="cpu")
        yield pb.LoadProgress(stage=pb.LoadProgress.STAGE_READY, model=self.model)

    async def Session(self, requests, context):
        running = self.running = {}
        reader = asyncio.create_task(read(requests, running, self.options.prefill_steps))
        try:
            while running or not reader.done():
                if events := [advance(request_id, words) for request_id, words in running.items()]:
                    for event in events:
                        if event.WhichOneof("kind") in ("finished", "failed"):
                            del running[event.request_id]
                    self.steps += 1
                    if self.steps > 3:
                        crash(self.options, "step")
                        await self.hang()
                    yield pb.StepEvents(events=events)
                await asyncio.sleep(self.options.interval)
        finally:
            reader.cancel()
            running.clear()

    async def hang(self):
        """A step that does not end, while everything else is answered."""
        if self.options.hang == "step":
            with self.watchdog:
                await asyncio.Event().wait()

    async def Status(self, request, context):
        state = pb.StatusResponse.STATE_LOADING if self.loading else pb.StatusResponse.STATE_IDLE
        state = pb.StatusResponse.STATE_READY if self.model else state
        return pb.StatusResponse(state=state, running=len(self.running), steps=self.steps, model=self.model)

    async def Shutdown(self, request, context):
        if self.options.hang == "shutdown":
            await asyncio.Event().wait()
        for words in self.running.values():
            words[:] = [
                pb.Failed(code=grpc.StatusCode.UNAVAILABLE.value[0], message="the runner is stopping")
            ]
        while self.running:
            await asyncio.sleep(0.001)
        self.stopped.set()
        return pb.ShutdownResponse()


async def read(requests, running, prefill_steps):
    """Turn each request into what it is still to be answered: words, then its end."""
    async for message in requests:
        if message.WhichOneof("action") == "generate":
            words = message.generate.prompt.text.split(" ")
            prefill = [pb.Prefill(tokens_done=i, tokens_total=1000) for i in range(prefill_steps)]
            running[message.request_id] = [*prefill, *words, pb.Finished(reason=pb.Finished.REASON_STOP)]
        elif words := running.get(message.request_id):
            words[:] = [pb.Failed(code=grpc.StatusCode.CANCELLED.value[0], message="cancelled")]


def advance(request_id, words):
    word = words.pop(0)
    if isinstance(word, pb.Prefill):
        return pb.Event(request_id=request_id, prefill=word)
    if isinstance(word, pb.Finished):
        return pb.Event(request_id=request_id, finished=word)
    if isinstance(word, pb.Failed):
        return pb.Event(request_id=request_id, failed=word)
    return pb.Event(request_id=request_id, delta=pb.Delta(content=word, tokens=1))


def crash(options, point):
    if options.crash == point:
        print(f"crashing at {point}", file=sys.stderr, flush=True)
        os._exit(70)


async def serve(options):
    crash(options, "start")
    os.umask(0o077)
    service = FakeRunner(options)
    server = grpc.aio.server()
    pb_grpc.add_RunnerServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{options.socket}")
    await server.start()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if options.ignore_term else service.stopped.set)

    hello = {"protocol": 1, "api": "ollmlx.runner.v1", "engine": options.engine, "pid": os.getpid()}
    hello["versions"] = {"python": platform.python_version()}
    with os.fdopen(4, "w") as pipe:
        pipe.write(json.dumps(hello) + "\n" if options.handshake else "INFO: listening\n")
    print("print() of a library")
    await service.stopped.wait()
    await server.stop(grace=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--warm", action="store_true", help="there is nothing to import")
    parser.add_argument("--log-level", help="it logs little")
    parser.add_argument("--load-steps", type=int, default=0, help="tenths of a second that a load takes")
    parser.add_argument("--prefill-steps", type=int, default=0, help="steps before the first word")
    parser.add_argument("--crash", choices=("start", "load", "step"))
    parser.add_argument("--hang", choices=("load", "step", "shutdown"))
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument(
        "--no-handshake", dest="handshake", action="store_false", help="announce with a line that is not JSON"
    )
    parser.add_argument("--interval", type=float, default=0.001, help="seconds between two steps")
    asyncio.run(serve(parser.parse_args()))
