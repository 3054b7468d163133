"""A second turn pays for its new tokens only, and says what it would have said without the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ollmlx.runner.mlx.prefix_cache import Prefix, PrefixCache
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import RunnerProcess, SessionClient
from tests.support.tiny_models import ARCHITECTURES
from tests.support.worker import InProcess

# Caches of these cannot be joined into a batch, and are not reused either.
ONE_BY_ONE = {"llama4"}


class Numbers:
    """Operations on "caches" that are [number of tokens], ten bytes a token."""

    def __init__(self, cuttable: bool) -> None:
        self._cuttable = cuttable

    def cuttable(self, caches: list[int]) -> bool:
        return self._cuttable

    def cut(self, caches: list[int], length: int) -> list[int]:
        return [length]

    def nbytes(self, caches: list[int]) -> int:
        return caches[0] * 10


def store(max_bytes: int = 1000, cuttable: bool = True) -> PrefixCache:
    return PrefixCache(max_bytes, Numbers(cuttable))


def prefix(*tokens: int) -> Prefix:
    return Prefix(tokens, [len(tokens)])


def test_the_longest_common_prefix_is_found_and_cut() -> None:
    cache = store()
    cache.add("", prefix(*range(20)))
    cache.add("", prefix(*range(10), *range(50, 60)))
    found = cache.find("", [*range(15), 99, 99])
    assert (list(found.tokens), found.caches) == (list(range(15)), [15])
    assert (cache.hit_tokens, cache.miss_tokens) == (15, 2)


def test_at_least_one_token_is_left_to_compute() -> None:
    cache = store()
    cache.add("", prefix(*range(20)))
    assert len(cache.find("", list(range(20))).tokens) == 19


def test_what_cannot_be_cut_is_used_whole_or_not() -> None:
    cache = store(cuttable=False)
    cache.add("", prefix(*range(20)))
    assert cache.find("", [*range(15), 99]) is None
    assert cache.find("", list(range(20))) is None
    assert len(cache.find("", list(range(21))).tokens) == 20


def test_a_longer_prefix_replaces_a_shorter_one_only_if_it_can_be_cut() -> None:
    for cuttable, entries in ((True, 1), (False, 2)):
        cache = store(cuttable=cuttable)
        cache.add("", prefix(*range(10)))
        cache.add("", prefix(*range(20)))
        cache.add("", prefix(*range(20)))
        assert len(cache) == entries


def test_the_least_recently_used_goes_when_bytes_run_out() -> None:
    cache = store(max_bytes=500)
    first, second, third = prefix(*range(20)), prefix(*range(100, 120)), prefix(*range(200, 220))
    cache.add("", first)
    cache.add("", second)
    cache.find("", [*range(20), 1])
    cache.add("", third)
    assert cache.bytes == 400
    assert cache.find("", [*range(20), 1]) is not None
    assert cache.find("", [*range(100, 120), 1]) is None
    cache.add("", prefix(*range(300, 400)))
    assert cache.bytes == 400, "what is larger than all of it is not kept"


def test_keys_are_apart() -> None:
    cache = store()
    cache.add("adapter", prefix(*range(20)))
    assert cache.find("", list(range(20))) is None
    assert cache.find("adapter", list(range(20))) is not None


def test_short_prefixes_are_not_worth_it() -> None:
    cache = store()
    cache.add("", prefix(1, 2, 3))
    assert len(cache) == 0
    cache.add("", prefix(*range(20)))
    assert cache.find("", [0, 1, 2, 99]) is None


def test_many_entries_share_their_beginning() -> None:
    cache = store(max_bytes=100_000)
    for i in range(50):
        cache.add("", prefix(*range(10), 100 + i, *range(20)))
    assert len(cache) == 50
    for i in range(50):
        assert len(cache.find("", [*range(10), 100 + i, *range(20), 7]).tokens) == 31
    assert len(cache.find("", [*range(10), 99, 98]).tokens) == 10


def turns(*contents: str) -> dict[str, object]:
    roles = ["user", "assistant"]
    messages = [pb.Message(role=roles[i % 2], content=c) for i, c in enumerate(contents)]
    return {"chat": pb.Chat(messages=messages), "options": pb.Options(num_predict=20, temperature=0)}


QUESTION = "The quick brown fox jumps over the lazy dog, and then it does so again. " * 2
ANSWER = "Does it?"


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_second_turn_says_the_same_with_and_without(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    path = tiny_model(architecture)
    second = turns(QUESTION, ANSWER, "And now?")
    with InProcess(path, kv_cache_bytes=1) as model:
        without = model.run(**second)
    assert without.finished.usage.cached_prompt_tokens == 0

    with InProcess(path) as model:
        first = model.run(**turns(QUESTION))
        again = model.run(**turns(QUESTION))
        with_cache = model.run_together([second, second])
    assert again.content == first.content
    for answer in with_cache:
        assert answer.content == without.content
        usage = answer.finished.usage
        assert usage.prompt_tokens == without.finished.usage.prompt_tokens
        if architecture not in ONE_BY_ONE:
            assert usage.cached_prompt_tokens >= len(QUESTION)
            assert answer.prefills[0][0] == usage.cached_prompt_tokens


@pytest.mark.parametrize("architecture", ["mamba2", "gemma3_text"])
def test_boundaries_serve_where_nothing_can_be_cut(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    system = pb.Message(role="system", content="You are a fox, and quick and brown besides. " * 2)

    def ask(*contents: str) -> dict[str, object]:
        fields = turns(*contents)
        fields["chat"].messages.insert(0, system)
        return fields

    with InProcess(tiny_model(architecture)) as model:
        model.run(**ask(QUESTION, ANSWER, "And now?"))
        other = model.run(**ask("Another conversation.")).finished.usage.cached_prompt_tokens
        edited = model.run(**ask(QUESTION, ANSWER, "Or rather: then?")).finished.usage.cached_prompt_tokens
        regenerated = model.run(**ask(QUESTION, ANSWER, "And now?")).finished.usage
    assert len(system.content) <= other < len(system.content) + 40, "the system prompt"
    assert edited >= len(system.content) + len(QUESTION) + len(ANSWER), "all turns but the last"
    assert regenerated.cached_prompt_tokens == regenerated.prompt_tokens - 1, "the whole prompt"


def test_a_cancelled_prompt_is_not_lost_work(session: SessionClient, runner: RunnerProcess) -> None:
    text = "x y z " * 60
    request = session.start(prompt=pb.Prompt(text=text), options=pb.Options(num_predict=500))
    session.next_delta(request)
    session.cancel(request)
    session.result(request)
    usage = session.run(prompt=pb.Prompt(text=text), options=pb.Options(num_predict=1)).finished.usage
    assert usage.cached_prompt_tokens == len(text) - 1
    status = runner.stub.Status(pb.StatusRequest()).prefix_cache
    assert status.entries >= 1
    assert status.bytes > 0
    assert status.hit_tokens >= len(text) - 1
