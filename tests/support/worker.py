"""The runner's worker in this process, without gRPC: for tests that look into it, and for those of many models."""

from __future__ import annotations

import collections
import queue
import threading
from pathlib import Path

import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.prompt import Preparation
from ollmlx.runner.mlx.request import Request
from ollmlx.runner.mlx.worker import Worker
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import Answer


class InProcess:
    """A worker with a model; use as a context manager. Requests as with SessionClient. It is its own session."""

    def __init__(self, model: Path, **load: object) -> None:
        self.worker = Worker()
        self.worker.start()
        request = pb.LoadRequest(model_path=str(model), **load)
        self.worker.call(self.worker.load, request, lambda _: None, threading.Event()).result(60)
        self._preparation = Preparation(
            self.worker.tokenizer,
            self.worker.info,
            keep_boundaries=not self.worker.scheduler.cuttable,
            eyes=self.worker.eyes,
            blindness=self.worker.blindness,
        )
        self._inboxes: dict[int, queue.SimpleQueue[pb.Event]] = collections.defaultdict(queue.SimpleQueue)
        self._last = 0

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close()

    def emit(self, events: pb.StepEvents) -> None:
        """Called by the worker, on its thread."""
        for event in events.events:
            self._inboxes[event.request_id].put(event)

    def start(self, **fields: object) -> int:
        self._last += 1
        request = Request(self._last, self, pb.GenerateRequest(**fields))
        self.worker.call(self.worker.scheduler.register, request)
        try:
            prepared = self._preparation.prepare(request.proto)
        except RunnerError as err:
            self.worker.call(self.worker.scheduler.fail, request, err)
        else:
            self.worker.call(self.worker.scheduler.admit_when_possible, request, prepared)
        return request.id

    def tokenize(self, request: dict[str, object]) -> str:
        """The text that a chat becomes."""
        return self._preparation.encode_chat(request["chat"])[1]

    def result(self, request_id: int) -> Answer:
        answer = Answer()
        while answer.finished is None and answer.failed is None:
            answer.add(self._inboxes[request_id].get(timeout=60))
        return answer

    def run(self, **fields: object) -> Answer:
        return self.result(self.start(**fields))

    def run_together(self, requests: list[dict[str, object]]) -> list[Answer]:
        """All at once, in one batch."""
        return [self.result(i) for i in [self.start(**r) for r in requests]]


def log_towers(model: InProcess, monkeypatch: pytest.MonkeyPatch, log: list[str] | None = None) -> list[str]:
    """From now on, each run of the vision tower leaves a word in the log that is returned."""
    log = [] if log is None else log
    seeing = model.worker._loaded.model
    tower = type(getattr(seeing, "vision_tower", None) or seeing.vision_model)
    run = tower.__call__

    def logging(*arguments: object, **fields: object) -> object:
        log.append("tower")
        return run(*arguments, **fields)

    monkeypatch.setattr(tower, "__call__", logging)
    return log
