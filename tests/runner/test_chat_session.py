"""Chats with the demo model through a session."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.demo import DEMO, WEATHER
from tests.support.runner_process import RunnerProcess, SessionClient


@pytest.fixture(scope="module")
def runner() -> Iterator[RunnerProcess]:
    with RunnerProcess() as process:
        process.load(DEMO)
        yield process


def calls(session: SessionClient, mode: str, single: bool) -> list[pb.ToolCall]:
    """Calls of an answer whose grammar or model would rather make several."""
    chat = pb.Chat(
        messages=[pb.Message(role="user", content="What is the weather in Paris and in London?")],
        tools=[pb.Tool(json=json.dumps(WEATHER))],
        tool_choice={"mode": mode, "single": single},
        think=pb.Think(enabled=False),
    )
    answer = session.run(chat=chat, options=pb.Options(num_predict=200, temperature=0))
    assert answer.finished.reason == pb.Finished.REASON_STOP
    return answer.tool_calls


@pytest.mark.parametrize("mode", ["MODE_AUTO", "MODE_REQUIRED"])
def test_a_single_call_ends_the_answer(session: SessionClient, mode: str) -> None:
    assert len(calls(session, mode, single=True)) == 1


def test_prefill_tells_what_was_cached(session: SessionClient) -> None:
    request = {
        "chat": pb.Chat(messages=[pb.Message(role="user", content="Tell me a short story about a cat.")]),
        "options": pb.Options(num_predict=2),
    }
    for cached in (False, True):
        answer_id = session.start(**request)
        prefill = session.next_event(answer_id).prefill
        assert bool(prefill.tokens_cached) == cached
        assert prefill.tokens_cached == prefill.tokens_done < prefill.tokens_total
        assert session.result(answer_id).finished.usage.cached_prompt_tokens == prefill.tokens_cached
