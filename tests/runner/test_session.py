"""What the host relies on of a session: see the comments of runner.proto."""

from __future__ import annotations

import time

import grpc
import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import RunnerProcess, SessionClient

pytestmark = pytest.mark.parametrize("runner", ["mlx", "gguf"], indirect=True)

# Longer than any test waits, however fast the engine is.
LONG = {
    "prompt": pb.Prompt(text="Once upon a time"),
    "options": pb.Options(num_predict=100_000, temperature=0),
    "shift": True,
}


def short(text: str, tokens: int = 30, **options: object) -> dict[str, object]:
    return {"prompt": pb.Prompt(text=text), "options": pb.Options(num_predict=tokens, **options)}


def wait_until_idle(runner: RunnerProcess) -> None:
    """No request is left soon, on a busy machine too; LONG would go on for much longer."""
    deadline = time.monotonic() + 10
    while (status := runner.stub.Status(pb.StatusRequest())).running or status.queued:
        assert time.monotonic() < deadline, f"still {status.running} running, {status.queued} queued"
        time.sleep(0.005)


def test_an_answer_reports_its_usage(session: SessionClient) -> None:
    answer = session.run(**short("Hello", tokens=12))
    assert answer.finished.reason == pb.Finished.REASON_LENGTH
    usage = answer.finished.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 12)
    assert answer.tokens == 12
    assert usage.prefill_ns > 0
    assert usage.decode_ns > 0


def test_requests_share_messages_and_steps(runner: RunnerProcess, session: SessionClient) -> None:
    before = runner.stub.Status(pb.StatusRequest()).steps
    answers = [
        session.result(i) for i in [session.start(**short(p, 300)) for p in ("a", "b", "c", "d", "e", "f")]
    ]
    assert all(a.finished for a in answers)
    steps = runner.stub.Status(pb.StatusRequest()).steps - before
    assert steps < 900, "six requests of 300 tokens must run in one batch"
    assert session.messages < 900, "one message per step, not per token"


def test_streams_interleave(session: SessionClient) -> None:
    first, second = session.start(**LONG), session.start(**short("The second", 40))
    session.next_delta(first)
    assert session.result(second).finished
    session.next_delta(first)
    session.cancel(first)
    assert session.result(first).failed.code == grpc.StatusCode.CANCELLED.value[0]


def test_cancel_frees_the_row_and_leaves_the_others(runner: RunnerProcess, session: SessionClient) -> None:
    alone = session.run(**short("A neighbour", 200)).content
    doomed, neighbour = session.start(**LONG), session.start(**short("A neighbour", 200))
    session.next_delta(doomed)
    session.cancel(doomed)
    assert session.result(neighbour).content == alone
    assert session.result(doomed).failed.message == "request canceled"
    wait_until_idle(runner)


def test_cancel_of_a_queued_or_ended_request(session: SessionClient) -> None:
    request = session.start(**LONG)
    session.cancel(request)
    assert session.result(request).failed.code == grpc.StatusCode.CANCELLED.value[0]
    session.cancel(request)
    session.cancel(999)
    assert session.run(**short("still fine")).finished


def test_a_closed_session_cancels_what_was_in_it(runner: RunnerProcess) -> None:
    with runner.session() as session:
        session.next_delta(session.start(**LONG))
        session.next_delta(session.start(**LONG))
    wait_until_idle(runner)


def test_an_id_in_use_is_refused(session: SessionClient) -> None:
    session.start(request_id=7, **LONG)
    session.next_delta(7)
    session.start(request_id=7, **short("again"))
    while (event := session.next_event(7)).WhichOneof("kind") != "failed":
        pass
    assert event.failed.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    session.next_delta(7)
    session.cancel(7)


def test_stop_string_across_tokens(session: SessionClient) -> None:
    # One token a byte, so any stop string spans several tokens.
    text = session.run(**short("Stop", 60)).content
    stop = text[10:13]
    answer = session.run(**short("Stop", 60, stop=[stop]))
    assert answer.content == text[: text.index(stop)]
    assert answer.finished.reason == pb.Finished.REASON_STOP_SEQUENCE
    assert answer.finished.stop_sequence == stop


def test_seeded_sampling_repeats_also_in_a_batch(session: SessionClient) -> None:
    request = short("Dice", 40, temperature=1.0, top_k=40, top_p=0.9, seed=42)
    alone = session.run(**request).content
    others = [session.start(**short("noise", 40, temperature=1.0, seed=s)) for s in range(3)]
    assert session.run(**request).content == alone
    assert len({session.result(i).content for i in others}) == 3


def test_repeat_penalty_changes_the_text(session: SessionClient) -> None:
    assert (
        session.run(**short("again", 60)).content
        != session.run(**short("again", 60, repeat_penalty=5)).content
    )


def test_logprobs(session: SessionClient) -> None:
    answer = session.run(**short("Probably", 5), logprobs=True, top_logprobs=3)
    assert len(answer.logprobs) == 5
    for entry in answer.logprobs:
        assert entry.logprob <= 0
        assert [t.logprob for t in entry.top] == sorted((t.logprob for t in entry.top), reverse=True)
        assert entry.top[0].id == entry.id, "greedy takes the likeliest"
        assert entry.text or entry.bytes


def test_context_shift_goes_on_and_refusal_ends(session: SessionClient) -> None:
    shifting = session.run(**short("Shift", 100), num_ctx=32, shift=True)
    assert (shifting.tokens, shifting.finished.reason) == (100, pb.Finished.REASON_LENGTH)
    ending = session.run(**short("Shift", 100), num_ctx=32)
    assert (ending.tokens, ending.finished.reason) == (27, pb.Finished.REASON_LENGTH)


def test_long_prompts_are_cut_or_refused(session: SessionClient) -> None:
    cut = session.run(**short("x" * 100, 4), num_ctx=32, truncate=True)
    assert cut.finished.usage.prompt_tokens < 32
    refused = session.run(**short("x" * 100, 4), num_ctx=32)
    assert refused.failed.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert (
        refused.failed.message
        == "input length (100 tokens) exceeds the model's maximum context length (32 tokens)"
    )


def test_chat_truncation_keeps_system_and_last(session: SessionClient) -> None:
    messages = [pb.Message(role="system", content="S")]
    messages += [pb.Message(role="user", content=f"old message {i} " + "y" * 40) for i in range(5)]
    messages += [pb.Message(role="user", content="Z")]
    answer = session.run(
        chat=pb.Chat(messages=messages), options=pb.Options(num_predict=2), num_ctx=80, truncate=True
    )
    assert answer.finished.usage.prompt_tokens < 80
    only = session.run(
        chat=pb.Chat(messages=[messages[0], messages[-1]]), options=pb.Options(num_predict=2), num_ctx=80
    )
    assert answer.finished.usage.prompt_tokens == only.finished.usage.prompt_tokens
    assert answer.content == only.content


def test_num_predict_zero_computes_nothing(session: SessionClient) -> None:
    answer = session.run(**short("nothing", 0))
    assert (answer.content, answer.finished.reason) == ("", pb.Finished.REASON_LENGTH)


def test_context_is_returned_when_asked_for(session: SessionClient) -> None:
    answer = session.run(**short("ctx", 4), return_context=True)
    assert len(answer.finished.context) == 3 + 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": float("inf"), "temperature": 1}, "top_p"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repeat_last_n": -2, "repeat_penalty": 2}, "repeat_last_n"),
        ({"logit_bias": {100000: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ],
)
def test_hostile_options_are_refused_by_name(session: SessionClient, options: dict, named: str) -> None:
    answer = session.run(prompt=pb.Prompt(text="Hi"), options=pb.Options(num_predict=4, **options))
    assert answer.failed.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert named in answer.failed.message


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40000, "temperature": 0.8},
        {"top_k": -5, "temperature": 0.8},
        {"temperature": 1e9},
        {"temperature": 1e-30},
        {"top_p": 0, "temperature": 1},
        {"min_p": 7, "temperature": 1},
        {"typical_p": 0.5, "temperature": 1},
        {"num_keep": -3},
        {"repeat_last_n": 1000000, "repeat_penalty": 1.1},
    ],
)
def test_odd_options_are_honoured_and_poison_nothing(session: SessionClient, options: dict) -> None:
    assert (
        session.run(prompt=pb.Prompt(text="Hi"), options=pb.Options(num_predict=8, seed=7, **options)).tokens
        == 8
    )
    assert session.run(**short("after", 8, temperature=0.8, top_k=40)).tokens == 8


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": pb.Prompt(text="a", suffix="b")}, "insert"),
        ({"prompt": pb.Prompt(text="a", images=[pb.Image(data=b"x")])}, "images"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(session: SessionClient, fields: dict, named: str) -> None:
    answer = session.run(**{"prompt": pb.Prompt(text="Hi"), **fields})
    assert answer.failed.code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert named in answer.failed.message


def test_an_empty_prompt_is_refused(session: SessionClient) -> None:
    assert session.run(prompt=pb.Prompt(text="")).failed.message == "the prompt is empty"


def test_tokenize_and_detokenize(runner: RunnerProcess) -> None:
    tokens = runner.stub.Tokenize(pb.TokenizeRequest(prompt=pb.Prompt(text="Grüße 🌍"))).tokens
    assert runner.stub.Detokenize(pb.DetokenizeRequest(tokens=tokens)).text == "Grüße 🌍"
    chat = runner.stub.Tokenize(
        pb.TokenizeRequest(chat=pb.Chat(messages=[pb.Message(role="user", content="Hi")]))
    )
    assert chat.rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(grpc.RpcError) as err:
        runner.stub.Detokenize(pb.DetokenizeRequest(tokens=[99999]))
    assert err.value.code() == grpc.StatusCode.INVALID_ARGUMENT
