"""Answers of many families taken apart, however they arrive, and held to a call where one is required."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.chat import make_parser
from ollmlx.runner.mlx.chat_format import find_format
from ollmlx.runner.mlx.chat_parser import Piece
from ollmlx.runner.mlx.constraint import GrammarCompiler
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.families import FAMILIES, KÖLN, TOOLS, Family, make_tokenizer

CHAT = pb.Chat(messages=[pb.Message(role="user", content="?")], tools=TOOLS)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("families")
    return {name: make_tokenizer(directory / str(i), f) for i, (name, f) in enumerate(FAMILIES.items())}


def parse(
    tokenizer: Any, prompt: str, pieces: list[str], chat: pb.Chat = CHAT, stop: tuple[str, ...] = ()
) -> Piece:
    parser = make_parser(find_format(tokenizer), prompt, chat, stop)
    whole = Piece()
    for piece in pieces:
        whole.add(parser.feed(piece))
        if whole.stop:
            return whole
    whole.add(parser.finish())
    return whole


def calls(piece: Piece) -> list[tuple[str, dict[str, Any]]]:
    assert [c.index for c in piece.tool_calls] == list(range(len(piece.tool_calls)))
    return [(c.name, json.loads(c.arguments_json)) for c in piece.tool_calls]


def splits(text: str) -> list[list[str]]:
    """The text as a whole, by characters, cut in two at every place, and in random pieces."""
    rng = random.Random(1)
    found = [[text], list(text), *([text[:i], text[i:]] for i in range(1, len(text)))]
    for _ in range(20):
        cuts = sorted(rng.sample(range(1, len(text)), min(8, len(text) - 1)))
        found.append([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_taken_apart_however_it_arrives(name: str, tokenizers: dict[str, Any]) -> None:
    family = FAMILIES[name]
    for pieces in splits(family.answer):
        got = parse(tokenizers[name], family.prompt, pieces)
        assert (got.thinking, got.content, calls(got)) == (family.thinking, family.content, family.calls), (
            pieces
        )


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.broken_at])
def test_a_call_that_breaks_off_is_content_and_logged(
    name: str, tokenizers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    family = FAMILIES[name]
    broken = family.answer[: family.answer.index(family.broken_at) + 2]
    whole = parse(tokenizers[name], family.prompt, [broken])
    assert not whole.tool_calls
    assert whole.content.endswith(broken[-12:])
    assert len(whole.content) >= len("get_weather")
    with caplog.at_level(logging.WARNING):
        for pieces in splits(broken):
            assert parse(tokenizers[name], family.prompt, pieces) == whole
    if "bare" not in name:
        assert "tool call" in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_lost_wherever_an_answer_ends(name: str, tokenizers: dict[str, Any]) -> None:
    """Every prefix gives the same by characters and at once, and what it gives never has less text for more input
    than a call takes away."""
    family = FAMILIES[name]
    for end in range(1, len(family.answer)):
        prefix = family.answer[:end]
        assert parse(tokenizers[name], family.prompt, list(prefix)) == parse(
            tokenizers[name], family.prompt, [prefix]
        ), prefix


@pytest.mark.parametrize("name", FAMILIES)
def test_without_tools_there_are_no_calls(name: str, tokenizers: dict[str, Any]) -> None:
    family = FAMILIES[name]
    got = parse(tokenizers[name], family.prompt, [family.answer], pb.Chat(messages=CHAT.messages))
    assert not got.tool_calls
    assert got.thinking == family.thinking
    if family.calls:
        assert "Köln" in got.content


@pytest.mark.parametrize(
    "text", ['{"name": "unknown", "parameters": {}} and more', '{"a": 1}', "{x", '{"name']
)
def test_json_that_is_no_call_is_an_answer(tokenizers: dict[str, Any], text: str) -> None:
    for pieces in splits(text):
        got = parse(tokenizers["llama3, bare"], "", pieces)
        assert (got.content, got.tool_calls) == (text, [])
    got = parse(tokenizers["llama3, bare"], "", list('{"a": "STOP"}'), stop=("STOP",))
    assert (got.content, got.stop) == ('{"a": "', "STOP")


def test_harmony_stops_in_content_not_in_headers(tokenizers: dict[str, Any]) -> None:
    name = "gpt-oss, an answer"
    text = "<|channel|>final<|message|>the final word"
    got = parse(tokenizers[name], "<|start|>assistant", list(text), stop=("final",))
    assert (got.content, got.stop) == ("the ", "final")
    prefilled = "<|start|>assistant<|channel|>final<|message|>It is"
    assert parse(tokenizers[name], prefilled, list(" so.")).content == " so."


# ---- tool_choice


def compile_call(tokenizer: Any, prompt: str, name: str = "", **fields: Any) -> Any:
    chat = pb.Chat()
    chat.CopyFrom(CHAT)
    mode = pb.ToolChoice.MODE_NAMED if name else pb.ToolChoice.MODE_REQUIRED
    chat.tool_choice.CopyFrom(pb.ToolChoice(mode=mode, name=name, **fields))
    compiler = GrammarCompiler(tokenizer, len(tokenizer), find_format(tokenizer))
    return compiler.compile(pb.GenerateRequest(chat=chat), prompt)


def follows(tokenizer: Any, constraint: Any, text: str) -> bool:
    """Whether the grammar takes the whole text, and then the end of the answer."""
    constraint.restart(())
    for token in [*tokenizer.encode(text, add_special_tokens=False), 258]:
        mask = constraint.mask()
        if mask is not None and not mask[token // 8] >> token % 8 & 1:
            return False
        constraint.accept(token)
    return constraint.error is None


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.required])
def test_a_required_call_is_held_to_the_form_of_its_family(name: str, tokenizers: dict[str, Any]) -> None:
    family, tokenizer = FAMILIES[name], tokenizers[name]
    prompt = "" if family.prompt.endswith("<think>") else family.prompt
    call = family.required
    for constraint in (compile_call(tokenizer, prompt), compile_call(tokenizer, prompt, "get_weather")):
        assert follows(tokenizer, constraint, call)
        assert not follows(tokenizer, constraint, "I would rather talk.")
        assert not follows(tokenizer, constraint, call.replace("get_weather", "rm_rf_slash"))
        assert not follows(tokenizer, constraint, call.replace("days", "weeks"))
    assert not follows(tokenizer, compile_call(tokenizer, prompt, "get_time"), call)
    fmt = find_format(tokenizer)
    if fmt.thinks:
        thought = f"{fmt.think_start}\nHm, well.{fmt.think_end}"
        assert follows(tokenizer, compile_call(tokenizer, prompt), thought + call)
        assert follows(
            tokenizer, compile_call(tokenizer, prompt + fmt.think_start), f"Hm.{fmt.think_end}{call}"
        )
    got = parse(tokenizer, family.prompt if family.prompt == prompt else "", [call])
    assert (got.content, calls(got)) == ("", [KÖLN]), "what the grammar allows is what the parser reads"


def test_a_model_without_tool_calls_cannot_be_held_to_one(tmp_path: Path) -> None:
    plain = Family(template="{{ messages }}")
    with pytest.raises(RunnerError, match="marks no tool calls"):
        compile_call(make_tokenizer(tmp_path, plain), "")


def test_json_of_a_harmony_answer_is_its_final_message(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["gpt-oss"]
    compiler = GrammarCompiler(tokenizer, len(tokenizer), find_format(tokenizer))
    final = "<|channel|>final<|message|>"
    for constraint, right, wrong in (
        (pb.Constraint(json_object=True), '{"a":1}', "[1]"),
        (pb.Constraint(json_schema='{"type": "integer"}'), "12", '"x"'),
        (pb.Constraint(regex="a/b+"), "a/bb", "ab"),
    ):
        made = compiler.compile(pb.GenerateRequest(chat=CHAT, constraint=constraint), "<|start|>assistant")
        assert follows(tokenizer, made, final + right)
        thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        assert follows(tokenizer, made, thought + final + right)
        assert not follows(tokenizer, made, final + wrong)
        assert not follows(tokenizer, made, right)
    with pytest.raises(RunnerError, match="Lark"):
        compiler.compile(
            pb.GenerateRequest(chat=CHAT, constraint=pb.Constraint(lark='start: "a"')), "<|start|>assistant"
        )
