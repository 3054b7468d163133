"""Parsing of answers, against the markers of the Qwen3 form."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.chat import make_parser, render
from ollmlx.runner.mlx.chat_format import find_format
from ollmlx.runner.mlx.chat_parser import Piece, PlainParser
from ollmlx.runner.v1 import runner_pb2 as pb

TOKENIZER = SimpleNamespace(
    has_thinking=True,
    think_start="<think>",
    think_end="</think>",
    has_tool_calling=True,
    tool_call_start="<tool_call>",
    tool_call_end="</tool_call>",
    tool_parser=lambda text, tools: json.loads(text),
    has_chat_template=True,
)
WEATHER = pb.Tool(json='{"type": "function", "function": {"name": "get_weather", "parameters": {}}}')
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def parse(
    text: str, *, prompt: str = "", tools: bool = True, stop: tuple[str, ...] = (), size: int = 1
) -> Piece:
    """Feed the text in pieces of `size` characters and join what comes out."""
    chat = pb.Chat(messages=[pb.Message(role="user", content="?")], tools=[WEATHER] if tools else [])
    parser = make_parser(find_format(TOKENIZER), prompt, chat, stop)
    whole = Piece()
    pieces = []
    for start in range(0, len(text), size):
        pieces.append(parser.feed(text[start : start + size]))
        if pieces[-1].stop:
            break
    else:
        pieces.append(parser.finish())
    for piece in pieces:
        whole.content += piece.content
        whole.thinking += piece.thinking
        whole.tool_calls += piece.tool_calls
        whole.stop = whole.stop or piece.stop
    return whole


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_thinking_is_split_from_content(size: int) -> None:
    piece = parse("<think>\nHmm, 1 < 2.\n</think>\n\nYes.\n", size=size)
    assert (piece.thinking, piece.content) == ("Hmm, 1 < 2.", "Yes.\n")


def test_thinking_opened_by_the_template() -> None:
    piece = parse("Hmm.\n</think>\n\nYes.", prompt="<|im_start|>assistant\n<think>\n")
    assert (piece.thinking, piece.content) == ("Hmm.", "Yes.")


def test_a_user_who_writes_the_marker_opens_nothing() -> None:
    prompt = "<|im_start|>user\nwhat is <think><|im_end|>\n<|im_start|>assistant\n"
    assert parse("A marker.", prompt=prompt).content == "A marker."


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tool_calls_come_out_whole(size: int) -> None:
    piece = parse(f"Let me see. {CALL}\n{CALL}", size=size)
    assert piece.content == "Let me see. "
    assert [(c.name, json.loads(c.arguments_json), c.index) for c in piece.tool_calls] == [
        ("get_weather", {"city": "Köln"}, 0),
        ("get_weather", {"city": "Köln"}, 1),
    ]


def test_a_call_inside_thinking_counts() -> None:
    piece = parse(f"<think>I should look. {CALL}")
    assert piece.thinking.strip() == "I should look."
    assert len(piece.tool_calls) == 1


@pytest.mark.parametrize(
    "broken", ["<tool_call>{not json</tool_call>", '<tool_call>{"arguments": {}}</tool_call>', "<tool_call>{"]
)
def test_a_broken_call_is_content_and_logged(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        piece = parse(f"{broken}")
    assert (piece.content, piece.tool_calls) == (broken, [])
    assert "tool call" in caplog.text


def test_a_complete_call_without_its_end_marker_counts() -> None:
    assert len(parse(CALL.removesuffix("</tool_call>")).tool_calls) == 1


def test_without_tools_a_call_is_text() -> None:
    assert parse(CALL, tools=False).content == CALL


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_stop_strings_end_content_and_thinking_but_not_a_call(size: int) -> None:
    assert parse("one two three", stop=("two",), size=size) == Piece(content="one ", stop="two")
    assert parse("<think>a END b", stop=("END",), size=size).stop == "END"
    piece = parse(CALL, stop=("city",), size=size)
    assert (piece.stop, len(piece.tool_calls)) == (None, 1)


def test_plain_text_keeps_markers() -> None:
    parser = PlainParser(["STOP"])
    assert parser.feed("<think>x</think> ST").content == "<think>x</think> "
    assert parser.feed("OP after") == Piece(stop="STOP")


@pytest.mark.parametrize(
    ("chat", "named"),
    [
        (pb.Chat(), "message"),
        (pb.Chat(messages=[pb.Message(role="user", images=[pb.Image(data=b"x")])]), "vision"),
        (pb.Chat(messages=[pb.Message(role="user")], tools=[pb.Tool(json="[")]), "tool definition"),
        (
            pb.Chat(
                messages=[
                    pb.Message(role="assistant", tool_calls=[pb.ToolCall(name="f", arguments_json="{")])
                ]
            ),
            "arguments",
        ),
    ],
)
def test_what_cannot_be_rendered_is_named(chat: pb.Chat, named: str) -> None:
    with pytest.raises(RunnerError, match=named):
        render(TOKENIZER, chat)
