"""What can happen to requests on their way through the scheduler, each put there on purpose."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ollmlx.runner.errors import RunnerError, invalid
from ollmlx.runner.mlx import scheduler as scheduler_module
from ollmlx.runner.mlx import turns
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJob
from ollmlx.runner.mlx.engine import MLXEngine
from ollmlx.runner.mlx.prompt import Preparation
from ollmlx.runner.mlx.request import Request
from ollmlx.runner.mlx.scheduler import Scheduler
from ollmlx.runner.mlx.worker import Worker
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import make_adapter, make_model
from tests.support.worker import InProcess


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("faults") / "llama", "llama", endless=True)


@pytest.fixture(scope="module")
def adapter(path: Path, tmp_path_factory: pytest.TempPathFactory) -> pb.Adapter:
    directory = make_adapter(tmp_path_factory.mktemp("adapter") / "a", path, seed=1)
    return pb.Adapter(name="a", path=str(directory))


@pytest.fixture(scope="module")
def shared(path: Path) -> Iterator[InProcess]:
    with InProcess(path) as model:
        yield model


@pytest.fixture
def model(shared: InProcess) -> Iterator[InProcess]:
    yield shared
    scheduler = scheduler_of(shared)
    shared.worker.call(scheduler.fail_all, invalid("the test has ended")).result(10)
    assert not scheduler._requests and not scheduler._rows and not scheduler._waiting
    assert scheduler._suspect is None


def scheduler_of(model: InProcess) -> Scheduler:
    return model.worker.scheduler


def request(text: str, tokens: int = 30, **fields: object) -> dict[str, object]:
    options = pb.Options(num_predict=tokens, temperature=0)
    return {"prompt": pb.Prompt(text=text), "options": options, **fields}


def first_delta(model: InProcess, request_id: int) -> None:
    while not (event := model._inboxes[request_id].get(timeout=60)).HasField("delta"):
        assert not event.HasField("failed"), event.failed.message


def once(function: Callable[..., object], when: Callable[[], bool] = lambda: True) -> Callable[..., object]:
    """The function, which raises the first time that `when` says so."""
    done = threading.Event()

    def failing(*arguments: object) -> object:
        if not done.is_set() and when():
            done.set()
            raise RuntimeError("injected")
        return function(*arguments)

    return failing


def test_a_second_request_of_the_same_id_takes_nothing_from_the_first(model: InProcess) -> None:
    expected = model.run(**request("the first")).content
    first = model.start(**request("the first"))
    second = Request(first, model, pb.GenerateRequest(**request("the second")))
    scheduler = scheduler_of(model)
    model.worker.call(scheduler.register, second).result(10)
    model.worker.call(scheduler.fail, second, invalid("its prompt could not be prepared")).result(10)
    events = []
    while not (events and (events[-1].HasField("finished") or len(events) > 100)):
        events.append(model._inboxes[first].get(timeout=60))
    refusals = [e.failed.message for e in events if e.HasField("failed")]
    assert refusals == [f"request id {first} is in use"]
    assert "".join(e.delta.content for e in events) == expected


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_row_that_cannot_be_taken_out_harms_no_other(
    model: InProcess, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    scheduler = scheduler_of(model)
    expected = model.run(**request("a neighbour", 60)).content
    said = model.run(**request("the one that goes", 60)).content
    stop = {"options": pb.Options(num_predict=2000 if how == "cancel" else 60, temperature=0)}
    if how == "stop":
        stop["options"].stop.append(said[20:26])
    going = model.start(**(request("the one that goes") | stop))
    staying = model.start(**request("a neighbour", 60))
    first_delta(model, going)
    batch = scheduler._batch
    monkeypatch.setattr(batch, "remove", once(batch.remove))
    if how == "cancel":
        model.worker.call(scheduler.cancel, model, going).result(10)
    ended = model.result(going)
    assert ended.failed.message == "request canceled" if how == "cancel" else ended.finished
    assert model.result(staying).content == expected
    assert scheduler._batch is not batch, "the fault must have happened"
    assert not scheduler._rows


def test_a_row_on_trial_that_gives_way_for_memory_blocks_nobody(
    model: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request(f"row {i}", 60) for i in range(3)]
    expected = [model.run(**r).content for r in requests]
    scheduler = scheduler_of(model)
    # No first token comes with the prompt, which would end the trial.
    monkeypatch.setattr(scheduler, "_traits", dataclasses.replace(scheduler._traits, most_tokens=0))
    monkeypatch.setattr(scheduler_module, "_MEMORY_CHECK_STEPS", 1)
    given_way = []

    def is_overdrawn(rows: list[Request]) -> bool:
        on_trial = scheduler._suspect in rows and len(rows) > 1 and not given_way
        if on_trial:
            given_way.append(scheduler._suspect)
        return on_trial

    monkeypatch.setattr(scheduler._budget, "is_overdrawn", is_overdrawn)
    monkeypatch.setattr(
        scheduler._batch, "step", once(scheduler._batch.step, lambda: len(scheduler._rows) == 3)
    )
    assert [a.content for a in model.run_together(requests)] == expected
    assert given_way


def test_what_was_asked_of_an_answer_holds_after_a_failed_step(
    model: InProcess, adapter: pb.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grammar, log probabilities, penalties, seed, and a context that was shifted, under an adapter."""
    drawn = pb.Options(num_predict=120, temperature=1, seed=7, repeat_penalty=1.2, repeat_last_n=-1)
    schema = pb.Constraint(json_schema='{"type": "array", "items": {"type": "integer"}, "minItems": 40}')
    requests = [
        request("one", adapter=adapter) | {"options": drawn, "logprobs": True, "top_logprobs": 2},
        request("two", adapter=adapter) | {"options": drawn, "constraint": schema},
        request("three", adapter=adapter) | {"options": drawn, "num_ctx": 48, "shift": True},
    ]
    expected = model.run_together(requests)
    scheduler = scheduler_of(model)
    failing = once(scheduler._batch.step, lambda: all(r.generated > 70 for r in scheduler._rows.values()))
    monkeypatch.setattr(scheduler._batch, "step", failing)
    batch = scheduler._batch
    answers = model.run_together(requests)
    assert scheduler._batch is not batch
    assert [a.content for a in answers] == [a.content for a in expected]
    assert len(answers[0].logprobs) == 120
    assert [p.id for p in answers[0].logprobs] == [p.id for p in expected[0].logprobs]


def test_those_who_need_another_adapter_do_not_wait_for_ever(
    model: InProcess, adapter: pb.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0.2)
    scheduler = scheduler_of(model)
    long = request("an answer that takes long", 1500, adapter=adapter)
    base = model.run(**request("base")).content
    expected = model.run(**long).content
    talking = model.start(**long)
    first_delta(model, talking)
    job = EmbeddingJob([[5] * 20] * 40, pb.Adapter())
    model.worker.call(scheduler.embeddings.add, job).result(10)
    assert len(job.future.result(60)) == 40
    assert model.run(**request("base")).content == base
    assert (model, talking) in scheduler._requests, "the long answer goes on"
    answer = model.result(talking)
    assert answer.finished
    assert expected.endswith(answer.content[-100:])


def test_turns_that_are_too_short_for_a_prompt_still_come_to_an_end(
    model: InProcess, adapter: pb.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed of a prompt may not be kept, for lack of memory or by models that keep nothing."""
    requests = [request("long " * 300, 4), request("long " * 300, 4, adapter=adapter)]
    expected = [model.run(**r).content for r in requests]
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0)
    monkeypatch.setattr(scheduler_of(model)._prefixes, "find", lambda *_: None)
    assert [a.content for a in model.run_together(requests)] == expected


def test_a_stream_of_requests_does_not_starve_embeddings_of_another_adapter(
    model: InProcess, adapter: pb.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_TURN_SECONDS", 0.2)
    scheduler = scheduler_of(model)
    for i in range(20):
        model.start(**request(f"one of many {i}", 300, adapter=adapter))
    job = EmbeddingJob([[5] * (20 + i) for i in range(64)], pb.Adapter())
    model.worker.call(scheduler.embeddings.add, job).result(10)
    job.future.result(60)
    assert len(scheduler._requests) > 3, "before those that came earlier have ended"


def test_a_command_that_fails_is_logged(model: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        raise RuntimeError("injected")

    model.worker.post(failing)
    assert model.run(**request("still there")).finished
    assert "injected" in caplog.text


@pytest.mark.parametrize("stage", ["STAGE_WEIGHTS", "STAGE_WARMUP"])
def test_a_load_that_was_abandoned_leaves_no_model(path: Path, stage: str) -> None:
    worker, abandoned = Worker(), threading.Event()
    worker.start()

    def progress(message: pb.LoadProgress) -> None:
        if message.stage == pb.LoadProgress.Stage.Value(stage):
            abandoned.set()

    load = pb.LoadRequest(model_path=str(path))
    try:
        with pytest.raises(RunnerError, match="cancel"):
            worker.call(worker.load, load, progress, abandoned).result(60)
        assert worker.call(worker.load, load, lambda _: None, threading.Event()).result(60).vocab_size
    finally:
        worker.close()


@pytest.fixture
def engine(path: Path) -> Iterator[Callable[[Callable], object]]:
    engine = MLXEngine()

    def run(test: Callable[[MLXEngine], object]) -> object:
        async def whole() -> object:
            await engine.load(pb.LoadRequest(model_path=str(path)), lambda _: None)
            return await asyncio.wait_for(test(engine), 60)

        return asyncio.run(whole())

    yield run
    engine.close()


def test_what_came_just_before_the_end_is_finished_first(engine: Callable[[Callable], object]) -> None:
    """A request and an embedding that are still on their way to the engine's thread when it is to drain."""
    events: list[pb.Event] = []

    async def test(engine: MLXEngine) -> pb.EmbedResponse:
        session = engine.open_session(lambda step: events.extend(step.events))
        embedding = asyncio.create_task(engine.embed(pb.EmbedRequest(inputs=["a text"])))
        await asyncio.sleep(0)
        session.submit(1, pb.GenerateRequest(**request("the last one")))
        await engine.drain(30)
        return await embedding

    assert len(engine(test).embeddings) == 1
    assert events[-1].HasField("finished"), events[-1]


def test_the_prompt_of_a_request_that_is_gone_is_not_prepared(
    engine: Callable[[Callable], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, prepared, begun, go = Preparation.prepare, [], threading.Event(), threading.Event()

    def slow(self: Preparation, proto: pb.GenerateRequest) -> object:
        prepared.append(proto.prompt.text)
        begun.set()
        assert go.wait(30)
        return prepare(self, proto)

    monkeypatch.setattr(Preparation, "prepare", slow)

    async def test(engine: MLXEngine) -> None:
        events: asyncio.Queue[pb.Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        session = engine.open_session(
            lambda step: [loop.call_soon_threadsafe(events.put_nowait, e) for e in step.events]
        )
        session.submit(1, pb.GenerateRequest(**request("slow")))
        await asyncio.to_thread(begun.wait, 30)
        session.submit(2, pb.GenerateRequest(**request("gone")))
        session.cancel(2)
        session.submit(3, pb.GenerateRequest(**request("wanted")))
        assert (await events.get()).request_id == 2
        go.set()
        ended = set()
        while ended < {1, 3}:
            event = await events.get()
            ended |= {event.request_id} if event.HasField("finished") else set()

    engine(test)
    assert prepared == ["slow", "wanted"]
