"""Grammars for answers of a GGUF model that thinks first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollmlx.runner.gguf.engine import GGUFEngine
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.gguf_models import InProcess
from tests.support.tiny_ggufs import make_demo_gguf, make_gguf

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"known": {"enum": ["yes", "no"]}},
        "required": ["known"],
        "additionalProperties": False,
    }
)
# Grammars, and the answers that they leave.
GRAMMARS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "schema": ({"json_schema": SCHEMA}, {'{"known":"yes"}', '{"known":"no"}'}),
    "regex": ({"regex": 'yes|no/?"}'}, {"yes", 'no"}', 'no/"}'}),
    "lark": ({"lark": 'start: "yes" end | "no" end\nend: "}" | ")"'}, {"yes}", "yes)", "no}", "no)"}),
}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """The demo model, which thinks before it answers this question."""
    path = make_demo_gguf(tmp_path_factory.mktemp("thinker") / "demo.gguf")
    with InProcess(path, model_name="thinker") as loaded:
        yield loaded


def chat(**fields: Any) -> pb.Chat:
    return pb.Chat(messages=[pb.Message(role="user", content="What is ollmlx?")], **fields)


OPTIONS = pb.Options(num_predict=200, temperature=0)


def without_space(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("kind", GRAMMARS)
def test_a_chat_thinks_freely_and_answers_by_the_grammar(thinker: InProcess, kind: str) -> None:
    grammar, answers = GRAMMARS[kind]
    free = thinker.run(chat=chat(), options=OPTIONS)
    answer = thinker.run(chat=chat(), options=OPTIONS, constraint=pb.Constraint(**grammar))
    assert free.thinking and answer.thinking == free.thinking
    assert without_space(answer.content) in answers
    quick = thinker.run(
        chat=chat(think=pb.Think(enabled=False)), options=OPTIONS, constraint=pb.Constraint(**grammar)
    )
    assert not quick.thinking and quick.content in answers


@pytest.mark.parametrize("kind", GRAMMARS)
@pytest.mark.parametrize("opened", [False, True])
def test_a_rendered_prompt_reasons_as_the_host_says(thinker: InProcess, kind: str, opened: bool) -> None:
    grammar, answers = GRAMMARS[kind]
    rendered = GGUFEngine._tokenize(thinker.model, pb.TokenizeRequest(chat=chat())).rendered
    reasoning = pb.Reasoning(begin="" if opened else "<think>", end="</think>")
    answer = thinker.run(
        prompt=pb.Prompt(text=rendered + "<think>" if opened else rendered),
        options=OPTIONS,
        constraint=pb.Constraint(**grammar, reasoning=reasoning),
    )
    thought, _, content = answer.content.partition("</think>")
    assert thought.strip("\n").removeprefix("<think>").strip()
    assert content in answers


def test_what_a_grammar_cannot_be_is_refused(thinker: InProcess, tmp_path: Path) -> None:
    for grammar, named in (
        ({"regex": "(a"}, "unclosed group"),
        ({"lark": "start: nothing"}, "nothing"),
        ({"lark": 'start: "a"\n}\nstart: "b"'}, "cannot be honoured"),
    ):
        with pytest.raises(AssertionError, match=named):
            thinker.run(chat=chat(), options=OPTIONS, constraint=pb.Constraint(**grammar))
    template = "{{ enable_thinking }}{% for m in messages %}{{ m['content'] }}{% endfor %}[THINK]"
    path = make_gguf(tmp_path / "other.gguf", "llama", chat_template=template)
    with (
        InProcess(path, model_name="other") as other,
        pytest.raises(AssertionError, match="set think to false"),
    ):
        other.run(chat=chat(), options=OPTIONS, constraint=pb.Constraint(regex="a"))
