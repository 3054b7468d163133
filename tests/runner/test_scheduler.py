"""The scheduler in this process, with faults put into its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.request import Request
from ollmlx.runner.mlx.scheduler import Scheduler
from ollmlx.runner.mlx.worker import Worker
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import make_model
from tests.support.worker import InProcess

PROMPTS = ["first neighbour", "POISON", "second neighbour, longer than the first", "third"]


def request(text: str, **options: object) -> dict[str, object]:
    return {"prompt": pb.Prompt(text=text), "options": pb.Options(num_predict=30, **options)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with InProcess(make_model(tmp_path_factory.mktemp("worker") / "llama", "llama", endless=True)) as model:
        yield model


def break_steps(
    worker: Worker, should_fail: Callable[[Scheduler], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps raise after having computed, as an exception out of mlx-lm does, when `should_fail` says so."""
    scheduler, make_batch = worker.scheduler, mlxlm.make_batch

    def make_breaking(*arguments: object) -> object:
        batch = make_batch(*arguments)
        step = batch.step

        def breaking() -> object:
            result = step()
            if should_fail(scheduler):
                raise RuntimeError("injected")
            return result

        batch.step = breaking
        return batch

    monkeypatch.setattr(mlxlm, "make_batch", make_breaking)
    worker.call(lambda: setattr(scheduler, "_batch", scheduler._make_batch())).result(10)


def holds_poison(scheduler: Scheduler) -> bool:
    return any("POISON" in r.proto.prompt.text and r.generated >= 5 for r in scheduler._rows.values())


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}, {"repeat_penalty": 1.3}])
def test_only_the_culprit_of_a_failed_step_fails(
    model: InProcess, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    neighbours = [t for t in PROMPTS if t != "POISON"]
    expected = [model.run(**request(t, **options)).content for t in neighbours]
    break_steps(model.worker, holds_poison, monkeypatch)
    answers = dict(zip(PROMPTS, model.run_together([request(t, **options) for t in PROMPTS]), strict=True))
    assert "injected" in answers.pop("POISON").failed.message
    assert [a.content for a in answers.values()] == expected
    assert all(a.finished.usage.completion_tokens == 30 for a in answers.values())


def test_a_fault_that_passes_costs_nobody(model: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request(t) for t in PROMPTS]
    expected = [a.content for a in model.run_together(requests)]
    steps = iter(range(1000))
    break_steps(model.worker, lambda _: next(steps) == 12, monkeypatch)
    assert [a.content for a in model.run_together(requests)] == expected


def test_text_that_cannot_be_parsed_fails_its_request_only(
    model: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.run(**request("well"))
    add_token = Request.add_token

    def breaking(self: Request, *arguments: object) -> object:
        if self.proto.prompt.text == "broken":
            raise ValueError("injected")
        return add_token(self, *arguments)

    monkeypatch.setattr(Request, "add_token", breaking)
    well, broken = model.run_together([request("well"), request("broken")])
    assert well.content == expected.content
    assert "injected" in broken.failed.message
