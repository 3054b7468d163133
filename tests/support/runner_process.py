"""A Python stand-in for the host: starts a real runner as docs/runner-protocol.md says and speaks gRPC to
it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

from ollmlx.runner.v1 import runner_pb2 as pb
from ollmlx.runner.v1 import runner_pb2_grpc as pb_grpc


class RunnerProcess:
    """One runner; use as a context manager. `stub` is the gRPC client, `handshake` the announced line."""

    def __init__(self, command: tuple[str, ...] = (), *, engine: str = "mlx") -> None:
        command = command or ("-m", "ollmlx.runner", "--engine", engine)
        self._directory = tempfile.TemporaryDirectory(prefix="ollmlx-test-")
        self.socket = Path(self._directory.name) / "r1.sock"
        self._command = [sys.executable, *command, "--socket", str(self.socket)]
        self.log = Path(self._directory.name) / "log"

    def __enter__(self) -> RunnerProcess:
        lifeline_read, self._lifeline = os.pipe()
        handshake_read, handshake_write = os.pipe()

        # The child's fds 3 and 4 must be these two whatever numbers they have here, so a shell moves them.
        # The descriptors that the parent keeps are not inheritable.
        script = f'exec 3<&{lifeline_read} 4>&{handshake_write}; exec "$@"'
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "runner", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lifeline_read, handshake_write),
                cwd=self._directory.name,
                start_new_session=True,
            )
        os.close(lifeline_read)
        os.close(handshake_write)
        with os.fdopen(handshake_read) as pipe:
            line = pipe.readline()
        if not line:
            raise RuntimeError(f"no handshake, exit code {self.process.wait(10)}:\n{self.log.read_text()}")
        self.handshake = json.loads(line)
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")
        self.stub = pb_grpc.RunnerStub(self.channel)
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.hang_up()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self._directory.cleanup()

    def hang_up(self) -> None:
        """Close the lifeline, as the kernel does when the host dies."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def load(self, path: Path, **fields: object) -> pb.ModelInfo:
        """Load a model and return the last message's model."""
        return list(self.stub.Load(pb.LoadRequest(model_path=str(path), **fields)))[-1].model

    @contextlib.contextmanager
    def session(self) -> Iterator[SessionClient]:
        client = SessionClient(self.stub)
        try:
            yield client
        finally:
            client.close()


class SessionClient:
    """A session that sorts events by request; events arrive on a thread of its own."""

    def __init__(self, stub: pb_grpc.RunnerStub) -> None:
        self._outbox: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        self._inboxes: dict[int, queue.SimpleQueue[pb.Event]] = {}
        self._ids = itertools.count(1)
        self.messages = 0
        self._call = stub.Session(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, request_id: int | None = None, **fields: object) -> int:
        request_id = next(self._ids) if request_id is None else request_id
        self._inboxes.setdefault(request_id, queue.SimpleQueue())
        self._outbox.put(pb.SessionRequest(request_id=request_id, generate=pb.GenerateRequest(**fields)))
        return request_id

    def cancel(self, request_id: int) -> None:
        self._outbox.put(pb.SessionRequest(request_id=request_id, cancel=pb.Cancel()))

    def next_event(self, request_id: int, timeout: float = 60) -> pb.Event:
        return self._inboxes[request_id].get(timeout=timeout)

    def next_delta(self, request_id: int) -> pb.Delta:
        while (event := self.next_event(request_id)).WhichOneof("kind") != "delta":
            assert event.WhichOneof("kind") == "prefill", event
        return event.delta

    def result(self, request_id: int) -> Answer:
        """Read a request to its end."""
        answer = Answer()
        while answer.finished is None and answer.failed is None:
            answer.add(self.next_event(request_id))
        return answer

    def run(self, **fields: object) -> Answer:
        return self.result(self.start(**fields))

    def close(self) -> None:
        self._outbox.put(None)
        self._call.cancel()
        self._reader.join(10)

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for message in self._call:
                self.messages += 1
                for event in message.events:
                    self._inboxes.setdefault(event.request_id, queue.SimpleQueue()).put(event)


class Answer:
    """All events of one request, joined."""

    def __init__(self) -> None:
        self.content = ""
        self.thinking = ""
        self.tool_calls: list[pb.ToolCall] = []
        self.logprobs: list[pb.TokenLogprob] = []
        self.tokens = 0
        self.deltas = 0
        self.prefills: list[tuple[int, int]] = []
        self.finished: pb.Finished | None = None
        self.failed: pb.Failed | None = None

    def add(self, event: pb.Event) -> None:
        kind = event.WhichOneof("kind")
        if kind == "delta":
            self.content += event.delta.content
            self.thinking += event.delta.thinking
            self.tool_calls += event.delta.tool_calls
            self.logprobs += event.delta.logprobs
            self.tokens += event.delta.tokens
            self.deltas += 1
        elif kind == "prefill":
            self.prefills.append((event.prefill.tokens_done, event.prefill.tokens_total))
        elif kind == "finished":
            self.finished = event.finished
        else:
            self.failed = event.failed
