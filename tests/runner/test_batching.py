"""How prompts and rows share the steps of a batch: what goes together, what goes in turn, and what gives way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm
import psutil
import pytest

from ollmlx.runner.mlx import kv_budget
from ollmlx.runner.mlx.bursts import Bursts
from ollmlx.runner.mlx.mlxlm import LoadedModel, NewRow, make_batch, select_device, warm_up
from ollmlx.runner.mlx.mlxlm.pace import Pace
from ollmlx.runner.mlx.sampling import make_sampler, settings_from_options
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import make_model
from tests.support.worker import InProcess


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    select_device("cpu")
    path = make_model(tmp_path_factory.mktemp("batching") / "llama", "llama", endless=True)
    model, tokenizer = mlx_lm.load(str(path))
    return LoadedModel(model, tokenizer, {})


class Counted:
    """A batch of its own over a model that tells the shapes of what it is given."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.shapes: list[tuple[int, int]] = []
        model, shapes = loaded.model, self.shapes

        class Model:
            def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
                shapes.append(tokens.shape)
                return model(tokens, cache=cache)

            def __getattr__(self, name: str) -> object:
                return getattr(model, name)

        self.batch = make_batch(LoadedModel(Model(), loaded.tokenizer, {}), warm_up(loaded))

    def insert(self, prompt: int, tokens: int = 50) -> int:
        sampler = make_sampler(settings_from_options(pb.Options(), 259), None)
        return self.batch.insert(NewRow([i % 250 for i in range(prompt)], tokens, sampler))

    def steps_until_token(self, uid: int, limit: int = 2000) -> int:
        for step in range(limit):
            if any(t.uid == uid for t in self.batch.step()[1]):
                return step
        raise AssertionError(f"no token of row {uid} in {limit} steps")


def test_prompts_that_come_together_are_computed_together(loaded: LoadedModel) -> None:
    counted = Counted(loaded)
    uids = [counted.insert(n) for n in (20, 25, 30, 22)]
    counted.batch.step()
    assert counted.shapes == [(4, 29)], "all but the last token of each, in one go"
    assert {t.uid for t in counted.batch.step()[1]} == set(uids)
    assert counted.shapes[1:] == [(4, 1)], "first tokens do not wait for the step after them"
    assert counted.batch.step()[1] == [], "which has been handed out already"
    assert {t.uid for t in counted.batch.step()[1]} == set(uids)


def test_a_short_prompt_does_not_wait_for_a_long_one(loaded: LoadedModel) -> None:
    counted = Counted(loaded)
    first = counted.insert(10, tokens=1900)
    counted.steps_until_token(first)
    long = counted.insert(1800)
    for _ in range(5):
        counted.batch.step()
    short = counted.insert(12)
    assert counted.steps_until_token(short) < 6
    assert counted.steps_until_token(long) > 3, "it was still being computed"


def test_a_first_token_does_not_wait_for_other_prompts(loaded: LoadedModel) -> None:
    counted = Counted(loaded)
    # One that its first token ends leaves nothing that decodes.
    only, long = counted.insert(10, tokens=1), counted.insert(1500)
    assert [t.uid for t in counted.batch.step()[1]] == [only]
    assert counted.shapes == [(1, 10)], "the first token comes with the prompt"
    assert counted.steps_until_token(long) < 5
    middling, after = counted.insert(200), counted.insert(900)
    while not any(t.uid == middling for t in counted.batch.step()[1]):
        pass
    assert counted.shapes[-1] == (2, 1), "no piece of the long prompt before it"
    for _ in range(3):
        counted.batch.step()
    assert counted.shapes[-1][0] > 2, "pieces of it go with those after"
    counted.steps_until_token(after)


def test_the_first_token_of_a_short_prompt_comes_with_the_next_of_the_others(loaded: LoadedModel) -> None:
    counted = Counted(loaded)
    first = counted.insert(10)
    counted.steps_until_token(first)
    second = counted.insert(20)
    assert {t.uid for t in counted.batch.step()[1]} == {first, second}
    assert counted.shapes[-1] == (21, 1), "in one pass"


def test_an_old_prompt_does_not_wait_for_ever_behind_short_ones(loaded: LoadedModel) -> None:
    counted = Counted(loaded)
    counted.steps_until_token(counted.insert(10, tokens=1900))
    long = counted.insert(600)
    for _ in range(400):
        counted.insert(300, tokens=1)
        if any(t.uid == long for t in counted.batch.step()[1]):
            return
    raise AssertionError("no token in 400 steps")


def test_a_row_that_is_alone_has_no_mask_and_says_the_same_again_in_company(loaded: LoadedModel) -> None:
    counted = Counted(loaded)
    uid = counted.insert(10, tokens=30)
    alone = []
    while len(alone) < 30:
        alone += [t.id for t in counted.batch.step()[1]]
    again, guest = counted.insert(10, tokens=30), None
    together: list[int] = []
    while len(together) < 30:
        together += [t.id for t in counted.batch.step()[1] if t.uid == again]
        if len(together) == 8 and guest is None:
            guest = counted.insert(17, tokens=9)
    assert (uid, together) == (uid, alone)


@pytest.mark.parametrize("seconds_per_token", [0.00001, 0.001, 0.01, 0.1])
def test_chunks_become_as_large_as_the_gap_allows(seconds_per_token: float) -> None:
    pace, quiet = Pace(), 0.05
    assert pace.needs_a_quiet_step
    for _ in range(3):
        pace.step(quiet, 0, waited_for=True)
    assert not pace.needs_a_quiet_step
    for _ in range(30):
        pace.step(quiet + pace.chunk * seconds_per_token, pace.chunk, waited_for=True)
    stretched = (quiet + pace.chunk * seconds_per_token) / quiet
    # At least a few tokens, or a long prompt would never be done, and no more than without others.
    assert pace.chunk == 4 or 2.4 < stretched < 2.7 or pace.chunk == 2048


def test_the_end_of_a_prompt_leaves_chunks_as_they_are() -> None:
    pace, quiet = Pace(), 0.05
    for _ in range(3):
        pace.step(quiet, 0, waited_for=True)
    for _ in range(30):
        pace.step(quiet + 0.015 + pace.chunk * 0.001, pace.chunk, waited_for=True)
    chunk = pace.chunk
    assert chunk > 50
    pace.step(quiet + 0.015 + 0.002, 2, waited_for=True)
    assert pace.chunk >= chunk
    pace.step(quiet + 0.5, 2, waited_for=True)
    assert pace.chunk < chunk


def test_chunks_outgrow_what_goes_beside_rows_on_a_device_that_works_behind() -> None:
    """One whose queue takes a pass at once. A step waits for the pass before, and a piece of its own for all."""
    pace, quiet, beside = Pace(), 0.008, 16
    now = device = previous = 0.0
    for step in range(120):
        began = now
        tokens = pace.chunk if step > 10 else 0
        apart = tokens > beside
        device = max(device, now) + quiet + (0 if apart else tokens * 0.00006)
        now, previous = max(now, previous), device
        if apart:
            device += 0.006 + tokens * 0.00005
            now = device
        pace.step(now - began, tokens, waited_for=apart or not tokens)
    assert 100 < pace.chunk < 150


@pytest.mark.parametrize(("chunk", "shape"), [(10, (11, 1)), (30, (21, 1)), (50, (1, 50))])
def test_a_piece_goes_apart_from_rows_only_if_it_is_large(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, chunk: int, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr("ollmlx.runner.mlx.mlxlm.mixed.most_tokens", lambda *_: 20)
    monkeypatch.setattr(Pace, "needs_a_quiet_step", False)
    monkeypatch.setattr(Pace, "chunk", chunk)
    counted = Counted(loaded)
    counted.steps_until_token(counted.insert(10, tokens=1900))
    counted.insert(1800)
    counted.batch.step()
    assert counted.shapes[-1] == shape


@pytest.mark.parametrize("chunk", [16, 50])
def test_buffers_are_given_back_while_a_long_prompt_is_computed(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("ollmlx.runner.mlx.mlxlm.mixed.most_tokens", lambda *_: 20)
    monkeypatch.setattr(Pace, "needs_a_quiet_step", False)
    monkeypatch.setattr(Pace, "chunk", chunk)
    counted, cleared = Counted(loaded), []
    counted.steps_until_token(counted.insert(10, tokens=1900))
    monkeypatch.setattr(mx, "clear_cache", lambda: cleared.append(len(counted.shapes)))
    counted.steps_until_token(counted.insert(1800))
    assert 3 <= len(cleared) <= 4


def test_only_bursts_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    bursts = Bursts()
    assert bursts.patience(False, bursts.begin(several=False)) == 0, "nobody has ever followed"
    assert bursts.patience(True, bursts.begin(several=True)) > 0, "another one is being prepared"
    now += 1
    began = bursts.begin(several=False)
    assert bursts.patience(False, began) > 0, "the last one did not come alone"
    now += 1
    assert bursts.patience(False, began) <= 0, "not for ever"
    assert bursts.patience(False, bursts.begin(several=False)) == 0, "the last one came alone"


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    path, models = make_model(tmp_path / "llama", "llama", endless=True), []

    def start(**load: object) -> InProcess:
        models.append(InProcess(path, **load))
        return models[-1]

    yield start
    for model in models:
        model.worker.close()


def test_rows_that_outgrow_the_budget_give_way_and_lose_nothing(
    endless: Callable[..., InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_budget, "_AHEAD", 16)
    requests = [
        {"prompt": pb.Prompt(text=f"row {i}"), "options": pb.Options(num_predict=200)} for i in range(3)
    ]
    model = endless(num_ctx=1024)
    expected = [model.run(**r).content for r in requests]
    per_token = model.worker.info.kv_bytes_per_token
    # Three rows fit with what is expected of them, but not with what they become.
    model.worker.call(model.worker.scheduler.trim, 300 * per_token).result(10)
    widest, batch = 0, model.worker.scheduler._batch
    step = batch.step

    def watched() -> object:
        nonlocal widest
        widest = max(widest, sum(len(r.tokens) for r in model.worker.scheduler._rows.values()))
        return step()

    model.worker.call(lambda: setattr(batch, "step", watched)).result(10)
    answers = model.run_together(requests)
    assert [a.content for a in answers] == expected
    assert 250 < widest < 300 + 3 * 40


def test_a_prompt_that_memory_can_never_hold_is_refused_with_numbers(
    endless: Callable[..., InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = endless(num_ctx=1024)
    monkeypatch.setattr(kv_budget, "_MUCH", 0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": -(1 << 40)}))
    answer = model.run(prompt=pb.Prompt(text="x" * 500), options=pb.Options(num_predict=5))
    assert "500 tokens" in answer.failed.message
    assert "GB" in answer.failed.message
    monkeypatch.undo()
    assert model.run(prompt=pb.Prompt(text="x" * 500), options=pb.Options(num_predict=5)).finished
