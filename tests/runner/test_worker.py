"""The worker in this process, with faults put into its steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ollmlx.runner.mlx.prompt import Preparation
from ollmlx.runner.mlx.request import Request
from ollmlx.runner.mlx.worker import Worker
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import Answer
from tests.support.tiny_models import make_model

PROMPTS = ["first neighbour", "POISON", "second neighbour, longer than the first", "third"]


class Collector:
    """Stands in for the front's session."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[pb.Event] = queue.SimpleQueue()

    def emit(self, events: pb.StepEvents) -> None:
        for event in events.events:
            self.inbox.put(event)

    def results(self, ids: list[int]) -> list[Answer]:
        answers = {i: Answer() for i in ids}
        while any(a.finished is None and a.failed is None for a in answers.values()):
            event = self.inbox.get(timeout=30)
            answers[event.request_id].add(event)
        return [answers[i] for i in ids]


class Harness:
    def __init__(self, model: Path) -> None:
        self.worker = Worker()
        self.worker.start()
        load = pb.LoadRequest(model_path=str(model))
        self.worker.call(self.worker.load, load, lambda _: None, threading.Event()).result(60)
        self.session = Collector()
        self._preparation = Preparation(self.worker.tokenizer, self.worker.info, keep_boundaries=False)
        self._next = 0

    def submit(self, text: str, tokens: int = 30, **options: object) -> int:
        self._next += 1
        proto = pb.GenerateRequest(
            prompt=pb.Prompt(text=text), options=pb.Options(num_predict=tokens, **options)
        )
        request = Request(self._next, self.session, proto)
        self.worker.call(self.worker.register, request)
        prepared = self._preparation.prepare(proto)
        self.worker.call(self.worker.admit_when_possible, request, prepared)
        return request.id

    def run(self, texts: list[str], **options: object) -> list[Answer]:
        return self.session.results([self.submit(t, **options) for t in texts])


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    harness = Harness(make_model(tmp_path_factory.mktemp("worker") / "llama", "llama", endless=True))
    yield harness
    harness.worker.close()


def break_steps(
    worker: Worker, should_fail: Callable[[Worker], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps raise after having computed, as an exception out of mlx-lm does, when `should_fail` says so."""
    make_batch = worker._mlxlm.make_batch

    def make_breaking(*arguments: object) -> object:
        batch = make_batch(*arguments)
        step = batch.step

        def breaking(decoding: bool) -> object:
            result = step(decoding)
            if should_fail(worker):
                raise RuntimeError("injected")
            return result

        batch.step = breaking
        return batch

    monkeypatch.setattr(worker._mlxlm, "make_batch", make_breaking)
    worker.call(
        lambda: setattr(worker, "_batch", make_breaking(worker._loaded, worker._traits, worker._max_rows))
    ).result(10)


def holds_poison(worker: Worker) -> bool:
    return any("POISON" in r.proto.prompt.text and r.generated >= 5 for r in worker._rows.values())


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}, {"repeat_penalty": 1.3}])
def test_only_the_culprit_of_a_failed_step_fails(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    neighbours = [t for t in PROMPTS if t != "POISON"]
    expected = [harness.run([t], **options)[0].content for t in neighbours]
    break_steps(harness.worker, holds_poison, monkeypatch)
    answers = dict(zip(PROMPTS, harness.run(PROMPTS, **options), strict=True))
    assert "injected" in answers.pop("POISON").failed.message
    assert [a.content for a in answers.values()] == expected
    assert all(a.finished.usage.completion_tokens == 30 for a in answers.values())


def test_a_fault_that_passes_costs_nobody(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [a.content for a in harness.run(PROMPTS)]
    steps = iter(range(1000))
    break_steps(harness.worker, lambda _: next(steps) == 12, monkeypatch)
    assert [a.content for a in harness.run(PROMPTS)] == expected


def test_text_that_cannot_be_parsed_fails_its_request_only(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    [expected] = harness.run(["well"])
    add_token = Request.add_token

    def breaking(self: Request, *arguments: object) -> object:
        if self.proto.prompt.text == "broken":
            raise ValueError("injected")
        return add_token(self, *arguments)

    monkeypatch.setattr(Request, "add_token", breaking)
    well, broken = harness.run(["well", "broken"])
    assert well.content == expected.content
    assert "injected" in broken.failed.message
