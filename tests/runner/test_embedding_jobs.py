"""How rows of calls are put together, in this process, with an embedder that only counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ollmlx.runner.errors import RunnerError, unavailable
from ollmlx.runner.mlx.embedding import jobs as jobs_module
from ollmlx.runner.mlx.embedding.jobs import EmbeddingJob, EmbeddingJobs
from ollmlx.runner.v1 import runner_pb2 as pb


class CountingEmbedder:
    """The vector of a row is its sum and its length; a row with `poison` fails whatever is computed with it."""

    lower_case = False

    def __init__(self) -> None:
        self.computations: list[list[list[int]]] = []
        self.columns: list[int] = []
        self.poison: int | None = None
        self.pieces = 1

    def compute(self, rows: list[list[int]], columns: Callable[[], int]) -> Iterator[np.ndarray | None]:
        self.computations.append(rows)
        for _ in range(self.pieces - 1):
            self.columns.append(columns())
            yield None
        if any(self.poison in row for row in rows):
            raise ValueError("out of luck")
        yield np.array([[sum(row), len(row)] for row in rows], dtype=np.float32)


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
def jobs(embedder: CountingEmbedder) -> EmbeddingJobs:
    return EmbeddingJobs(embedder, "cpu")


def job(*lengths: int, token: int = 1, adapter: str = "") -> EmbeddingJob:
    return EmbeddingJob([[token] * n for n in lengths], pb.Adapter(name=adapter))


def run(jobs: EmbeddingJobs, decoding: bool = False) -> None:
    for _ in range(1000):
        if not jobs.pending:
            return
        jobs.step(decoding)
    raise AssertionError("it does not end")


def sizes(embedder: CountingEmbedder) -> list[list[int]]:
    return [[len(row) for row in rows] for rows in embedder.computations]


def test_vectors_come_back_in_order_whatever_the_lengths(jobs: EmbeddingJobs) -> None:
    lengths = [3, 200, 1, 77, 200, 5, 1, 300, 60]
    work = job(*lengths)
    jobs.add(work)
    assert jobs.running == 1
    run(jobs)
    assert [v[1] for v in work.future.result(0)] == lengths
    assert jobs.running == 0


def test_pieces_are_bounded_and_rows_of_a_piece_are_alike(
    jobs: EmbeddingJobs, embedder: CountingEmbedder
) -> None:
    jobs.add(job(*range(1, 120)))
    run(jobs)
    for lengths in sizes(embedder):
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= jobs_module.PIECE_IDLE_CPU
        assert max(lengths) <= 2 * min(lengths)
    assert len(embedder.computations) < 60


def test_a_row_longer_than_a_piece_is_computed_alone(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    jobs.add(job(2, 5000, 2))
    run(jobs)
    assert sizes(embedder) == [[5000], [2, 2]]


def test_pieces_are_larger_on_gpus_and_small_while_text_is_generated(embedder: CountingEmbedder) -> None:
    jobs = EmbeddingJobs(embedder, "metal")
    jobs.add(job(*[100] * 200))
    jobs.step(decoding=False)
    jobs.step(decoding=True)
    assert [len(c) for c in sizes(embedder)] == [81, 2]


def test_chunks_of_a_long_row_shrink_when_text_begins(embedder: CountingEmbedder) -> None:
    jobs = EmbeddingJobs(embedder, "metal")
    embedder.pieces = 3
    jobs.add(job(9000))
    jobs.step(decoding=False)
    jobs.step(decoding=True)
    assert embedder.columns == [8192, 256]


def test_calls_share_computations_and_take_turns(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    long, short = job(*[128] * 10), job(100)
    jobs.add(long)
    jobs.add(short)
    jobs.step(decoding=False)
    assert not short.future.done(), "the first piece is full"
    jobs.step(decoding=False)
    assert short.future.done() and not long.future.done(), (
        "the second call went first then, joined by the first"
    )
    assert sizes(embedder) == [[128, 128], [100, 128]]
    run(jobs)
    assert len(long.future.result(0)) == 10


def test_calls_for_different_adapters_are_apart(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    jobs.add(job(3, adapter="a"))
    jobs.add(job(3, adapter="b"))
    jobs.add(job(3, adapter="a"))
    assert jobs.adapter.name == "a"
    jobs.step(decoding=False)
    assert jobs.adapter.name == "b"
    jobs.step(decoding=False)
    assert [len(c) for c in embedder.computations] == [2, 1]


def test_an_adapter_that_fails_ends_its_calls_only(jobs: EmbeddingJobs) -> None:
    bad, good = [job(3, adapter="bad"), job(3, adapter="bad")], job(3)
    for work in (bad[0], good, bad[1]):
        jobs.add(work)
    jobs.fail_adapter("bad", unavailable("broken"))
    run(jobs)
    assert len(good.future.result(0)) == 1
    for work in bad:
        with pytest.raises(RunnerError, match="broken"):
            work.future.result(0)


def test_a_cancelled_call_costs_no_further_piece(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    gone, stays = job(*[200] * 50), job(7, token=2)
    embedder.pieces = 4
    jobs.add(gone)
    jobs.step(decoding=False)
    jobs.add(stays)
    assert gone.future.cancel()
    jobs.step(decoding=False)
    assert sizes(embedder) == [[200], [7]]
    run(jobs)
    assert stays.future.result(0)[0][0] == 14
    assert len(embedder.computations) == 2


def test_a_failure_costs_its_own_call_only(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    embedder.poison = 13
    fine, bad, also_fine = job(4, 5, 60), job(4, 4, token=13), job(5)
    for work in (fine, bad, also_fine):
        jobs.add(work)
    run(jobs)
    assert [v[1] for v in fine.future.result(0)] == [4, 5, 60]
    assert [v[1] for v in also_fine.future.result(0)] == [5]
    with pytest.raises(RunnerError, match="the embeddings could not be computed: out of luck"):
        bad.future.result(0)
    assert jobs.running == 0


def test_a_shutdown_fails_what_is_left(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    embedder.pieces = 3
    begun, waiting = job(300), job(300)
    jobs.add(begun)
    jobs.add(waiting)
    jobs.step(decoding=False)
    jobs.fail_all(unavailable("stopping"))
    for work in (begun, waiting):
        with pytest.raises(RunnerError, match="stopping"):
            work.future.result(0)
    assert not jobs.pending


def test_a_call_without_inputs_is_done_at_once(jobs: EmbeddingJobs) -> None:
    work = job()
    jobs.add(work)
    assert work.future.result(0) == [] and not jobs.pending


def test_an_adapter_that_is_gone_ends_also_what_was_begun_with_it(
    jobs: EmbeddingJobs, embedder: CountingEmbedder
) -> None:
    embedder.pieces = 3
    begun, other = job(4, adapter="a"), job(4, adapter="b")
    jobs.add(begun)
    jobs.add(other)
    jobs.step(decoding=False)
    assert not begun.waiting, "all its rows are being computed"
    jobs.fail_adapter("a", unavailable("gone"))
    assert isinstance(begun.future.exception(0), RunnerError)
    run(jobs)
    assert other.future.result(0)


def test_what_was_cancelled_is_not_waited_for(jobs: EmbeddingJobs, embedder: CountingEmbedder) -> None:
    """Requests for other adapters wait for what is pending."""
    embedder.pieces = 3
    waiting = job(4, adapter="a")
    jobs.add(waiting)
    waiting.future.cancel()
    assert not jobs.pending
    begun = job(4, adapter="a")
    jobs.add(begun)
    jobs.step(decoding=False)
    begun.future.cancel()
    assert not jobs.pending
    jobs.add(job(4, adapter="b"))
    assert jobs.adapter.name == "b"
