"""Answers of random weights follow their grammar, alone and beside others: nothing but the constraint makes them."""

from __future__ import annotations

import json
import re

import grpc
import pytest

from ollmlx.runner.mlx.constraint import Constraint, Thinking
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.demo import DEMO
from tests.support.runner_process import RunnerProcess, SessionClient
from tests.support.tiny_models import VOCAB_SIZE

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOLS = [
    pb.Tool(
        json=json.dumps(
            {
                "type": "function",
                "function": {
                    "name": name,
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"enum": ["Paris", "Rome"]}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                },
            }
        )
    )
    for name in ("get_weather", "get_time")
]


def constrained(seed: int, **constraint: object) -> dict[str, object]:
    return {
        "prompt": pb.Prompt(text="Say something"),
        "options": pb.Options(num_predict=400, temperature=1.0, seed=seed),
        "constraint": pb.Constraint(**constraint),
    }


def check_person(text: str) -> None:
    person = json.loads(text)
    assert set(person) == {"name", "age", "tags"}
    assert 0 <= person["age"] <= 150
    assert set(person["tags"]) <= {"red", "green"}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory):
    from tests.support.tiny_models import make_model

    with RunnerProcess() as process:
        process.load(make_model(tmp_path_factory.mktemp("constraint") / "m", "llama"), num_ctx=1024)
        yield process


@pytest.mark.parametrize("seed", range(3))
def test_schema(session: SessionClient, seed: int) -> None:
    answer = session.run(**constrained(seed, json_schema=json.dumps(PERSON)))
    assert answer.finished.reason == pb.Finished.REASON_STOP
    check_person(answer.content)


def test_schema_inside_a_batch_leaves_the_neighbours_alone(session: SessionClient) -> None:
    free = {"prompt": pb.Prompt(text="free"), "options": pb.Options(num_predict=60, temperature=0)}
    alone = session.run(**free).content
    ids = [session.start(**constrained(s, json_schema=json.dumps(PERSON))) for s in range(4)]
    assert session.run(**free).content == alone
    for i in ids:
        check_person(session.result(i).content)


def test_regex(session: SessionClient) -> None:
    answer = session.run(**constrained(1, regex="(yes|no), [0-9]{3}"))
    assert re.fullmatch("(yes|no), [0-9]{3}", answer.content)


def test_json_object_begins_as_one(session: SessionClient) -> None:
    answer = session.run(**constrained(1, json_object=True))
    assert answer.content.startswith("{")
    assert not answer.content.startswith("{ ")


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        ({"json_schema": '{"type": "array", "uniqueItems": true}'}, "uniqueItems"),
        ({"json_schema": '{"type": "strin"}'}, "strin"),
        ({"json_schema": "{"}, "JSON"),
        ({"regex": "(a"}, "unclosed group"),
        ({"lark": "start: nothing"}, "nothing"),
        ({}, "empty"),
    ],
)
def test_a_grammar_that_cannot_be_honoured_is_refused_by_name(
    session: SessionClient, constraint: dict, named: str
) -> None:
    answer = session.run(**constrained(0, **constraint))
    assert answer.failed.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert named in answer.failed.message


def test_a_shift_goes_on_in_the_grammar(session: SessionClient) -> None:
    request = constrained(4, regex="[a-z]{100}") | {"num_ctx": 40, "shift": True}
    assert re.fullmatch("[a-z]{100}", session.run(**request).content)


@pytest.mark.parametrize("begin", ["", "<think>"])
def test_reasoning_of_a_rendered_prompt_comes_before_the_grammar(session: SessionClient, begin: str) -> None:
    """The model is random: it ends its thinking with a letter, which stands in for a marker."""
    request = constrained(2, json_schema=json.dumps(PERSON), reasoning=pb.Reasoning(begin=begin, end="e"))
    request["options"].num_predict = 900
    # It would end its answer before that; in the grammar it can only end where the grammar does.
    request["options"].logit_bias[VOCAB_SIZE - 1] = -100
    thoughts, found, rest = session.run(**request).content.partition("e")
    if begin and not thoughts.startswith(begin):
        # It did not think at all, which it need not.
        thoughts, rest = "", thoughts + found + rest
    check_person(rest)
    assert begin or thoughts


def test_the_grammar_starts_in_the_middle_of_a_token() -> None:
    """A token may hold the end of thinking and the beginning of the answer."""
    vocabulary = {1: "<th", 2: "ink>", 3: "so", 4: "</think", 5: '>\n{"a', 6: '":1}', 7: ">", 8: ">x"}

    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "".join(vocabulary[i] for i in ids)

        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    class Matcher:
        def __init__(self) -> None:
            self.taken: list[int] = []

        def reset(self) -> None:
            self.taken.clear()

        def is_stopped(self) -> bool:
            return False

        def is_error(self) -> bool:
            return False

        def validate_tokens(self, tokens: list[int]) -> int:
            return 0

        def compute_bitmask(self) -> bytes:
            return bytes([1, 0])

        def consume_token(self, token: int) -> bool:
            self.taken.append(token)
            return token != ord("x")

        def get_error(self) -> str:
            return "x does not fit"

    def run(*tokens: int, begin: tuple[int, ...] = (1, 2)) -> Constraint:
        tokenizer = Tokenizer()
        thinking = Thinking(begin, (4, 7), not begin, "</think>", tokenizer.decode, tokenizer.encode)
        constraint = Constraint(Matcher(), thinking)
        for token in tokens:
            constraint.accept(token)
        return constraint

    # The beginning is allowed beside the grammar, then only its continuation, then everything.
    assert run().mask() == bytes([1 | 1 << 1, 0])
    assert run(1).mask() == bytes([1 << 2, 0])
    assert run(1, 2).mask() is None
    assert run(3, begin=()).mask() is None
    for tokens, taken in (
        ((1, 2, 3, 4, 7, 6), [6]),
        ((1, 2, 3, 4, 5, 6), [*map(ord, '{"a'), 6]),
        ((6,), [6]),
    ):
        constraint = run(*tokens)
        assert (constraint._matcher.taken, constraint.error) == (taken, None)
        # A row that is moved to another batch is told all of its tokens again.
        constraint.restart(tokens)
        assert constraint._matcher.taken == taken
    assert "x does not fit" in run(3, 4, 8, begin=()).error.message


class TestDemo:
    """With a model that thinks and calls tools."""

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls):
        with RunnerProcess() as process:
            process.load(DEMO)
            yield process

    def ask(self, session: SessionClient, think: bool, question: str = "What is ollmlx?", **fields: object):
        chat = {"messages": [pb.Message(role="user", content=question)], "think": pb.Think(enabled=think)}
        chat |= fields.pop("chat", {})
        options = pb.Options(num_predict=300, temperature=0)
        return session.run(chat=pb.Chat(**chat), options=options, **fields)

    @pytest.mark.parametrize("think", [True, False])
    def test_the_grammar_starts_after_thinking(self, session: SessionClient, think: bool) -> None:
        schema = pb.Constraint(json_schema=json.dumps(PERSON))
        answer = self.ask(session, think, constraint=schema)
        check_person(answer.content)
        assert bool(answer.thinking) == think

    @pytest.mark.parametrize("think", [True, False])
    @pytest.mark.parametrize("mode", ["MODE_REQUIRED", "MODE_NAMED"])
    def test_tool_choice_makes_a_call(self, session: SessionClient, think: bool, mode: str) -> None:
        chat = {"tools": TOOLS, "tool_choice": {"mode": mode, "name": "get_time"}}
        answer = self.ask(session, think, question="Hello", chat=chat)
        assert not answer.content
        assert answer.tool_calls
        for call in answer.tool_calls:
            assert call.name in ("get_weather", "get_time")
            assert json.loads(call.arguments_json)["city"] in ("Paris", "Rome")
        if mode == "MODE_NAMED":
            assert [c.name for c in answer.tool_calls] == ["get_time"]

    @pytest.mark.parametrize("think", [True, False])
    @pytest.mark.parametrize("constraint", [{"json_schema": json.dumps(PERSON)}, {"json_object": True}])
    def test_a_format_leaves_calls_to_the_model(
        self, session: SessionClient, think: bool, constraint: dict
    ) -> None:
        form = pb.Constraint(**constraint)
        question = "What is the weather in Paris?"
        answer = self.ask(session, think, question, chat={"tools": TOOLS}, constraint=form)
        assert not answer.content
        assert [c.name for c in answer.tool_calls] == ["get_weather"]
        none = {"tools": TOOLS, "tool_choice": {"mode": "MODE_NONE"}}
        answer = self.ask(session, think, question, chat=none, constraint=form)
        assert answer.content.startswith("{")
        assert not answer.tool_calls
        # Once it has thought of it, this small model prefers a call to an object that it would never begin.
        if not think:
            answer = self.ask(session, think, chat={"tools": TOOLS}, constraint=form)
            assert answer.content.startswith("{")
            assert not answer.tool_calls

    def test_tool_choice_without_its_tool_is_refused(self, session: SessionClient) -> None:
        answer = self.ask(
            session, False, chat={"tools": TOOLS, "tool_choice": {"mode": "MODE_NAMED", "name": "x"}}
        )
        assert "'x'" in answer.failed.message
        answer = self.ask(session, False, chat={"tool_choice": {"mode": "MODE_REQUIRED"}})
        assert "there are none" in answer.failed.message


@pytest.mark.parametrize("value", ['{"a": [1, 2], "b": {"c": null}}', '{"a":[1,2],"b":{"c":null}}'])
def test_one_blank_may_follow_a_comma_or_a_colon(value: str) -> None:
    """As models have learnt it; more than one, or others, might never end."""
    import llguidance

    from ollmlx.runner.schemas import json_value

    tokenizer = llguidance.LLTokenizer("byte")
    grammar = llguidance.LLMatcher.grammar_from_lark(f"start: {json_value({'type': 'object'})}")

    def taken(text: str) -> bool:
        tokens = tokenizer.tokenize_str(text)
        return llguidance.LLMatcher(tokenizer, grammar).validate_tokens(tokens) == len(tokens)

    assert taken(value)
    for wrong in (
        value.replace(",", ",  "),
        value.replace(":", ":\n"),
        value.replace("{", "{ "),
        " " + value,
    ):
        assert not taken(wrong), wrong
