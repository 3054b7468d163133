"""What a grammar of tool calls lets through, the parser of its form reads as calls that fit their schema."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.chat import make_parser
from ollmlx.runner.mlx.chat_format import find_format
from ollmlx.runner.mlx.constraint import GrammarCompiler
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.families import FAMILIES, make_tokenizer

EOS = 258
# One of each form that has a grammar.
FORMS = {n: f for n, f in FAMILIES.items() if f.required and n != "llama3, tagged"}

SCALARS: dict[str, Any] = {
    "query": {"type": "string", "minLength": 1, "maxLength": 30, "description": "What to look for."},
    "free": {"type": "string"},
    "lang": {"enum": ["en", "de", "null", " x", "1"]},
    "either": {"type": ["string", "integer"]},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "limit": {"type": "integer", "minimum": 1, "maximum": 500},
    "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "ratio": {"type": "number"},
    "share": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "flag": {"type": "boolean"},
    "code": {"type": "string", "pattern": "^[A-Z]{2,3}-[0-9]+$"},
    "when": {"type": "string", "format": "date"},
    "level": {"$ref": "#/$defs/Level"},
    "grade": {"allOf": [{"$ref": "#/$defs/Grade"}], "description": "As school has it."},
}
NESTED: dict[str, Any] = {
    "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    "place": {"$ref": "#/$defs/Place"},
    "open": {"type": "object", "additionalProperties": {"type": "integer"}},
}
DEFINITIONS = {
    "Level": {"type": "string", "enum": ["low", "high"]},
    "Grade": {"type": "integer", "enum": [1, 2, 3]},
    "Place": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "height": {"type": "number"},
            "inside": {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
}


def tool(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": DEFINITIONS,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def chat_of(*tools: dict[str, Any]) -> pb.Chat:
    return pb.Chat(
        messages=[pb.Message(role="user", content="?")],
        tools=[pb.Tool(json=json.dumps(t)) for t in tools],
        tool_choice=pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED),
    )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("forms")
    return {name: make_tokenizer(directory / str(i), f) for i, (name, f) in enumerate(FORMS.items())}


def compiled(tokenizer: Any, chat: pb.Chat, prompt: str) -> Any:
    compiler = GrammarCompiler(tokenizer, len(tokenizer), find_format(tokenizer))
    return compiler.compile(pb.GenerateRequest(chat=chat), prompt)


class Wanderer:
    """Takes tokens at random among those that the grammar allows, and now and then types a text as far as it may.

    Single bytes would hardly ever spell a mark: neither the one that ends a value, nor one that must not stand in it.
    """

    def __init__(self, tokenizer: Any, constraint: Any, rng: random.Random, snippets: list[str]) -> None:
        self._tokenizer = tokenizer
        self._constraint = constraint
        self._rng = rng
        self._snippets = [tokenizer.encode(s, add_special_tokens=False) for s in snippets]
        self._snippets += [list(s.encode()) for s in snippets]
        self.tokens: list[int] = []

    def allowed(self) -> list[int]:
        mask = self._constraint.mask()
        assert mask is not None
        return [i for i in range(len(self._tokenizer)) if mask[i // 8] >> i % 8 & 1]

    def take(self, token: int) -> None:
        self.tokens.append(token)
        self._constraint.accept(token)
        assert self._constraint.error is None

    def answer(self) -> str:
        while len(self.tokens) < 6000:
            allowed = self.allowed()
            assert allowed, f"a dead end after {self.text()!r}"
            hurry = len(self.tokens) > 500
            if EOS in allowed and (hurry or len(allowed) == 1 or self._rng.random() < 0.5):
                return self.text()
            typable = [s for s in self._snippets if s and s[0] in allowed]
            if typable and (hurry or self._rng.random() < 0.3):
                for token in self._rng.choice(typable):
                    if token not in self.allowed():
                        break
                    self.take(token)
            else:
                self.take(self._rng.choice([t for t in allowed if t != EOS] or allowed))
        raise AssertionError(f"no end: {self.text()!r}")

    def text(self) -> str:
        return self._tokenizer.decode(self.tokens)


def snippets(name: str) -> list[str]:
    marks = [
        "</parameter>\n", "\n</parameter>\n", "</parameter>", "</function>", "</function>\n", "</invoke>\n",
        "</param>", "]]>", "]]></param>", "</arg_value>", "</longcat_arg_value>", "</atem:parameter>",
        "</atem:invoke>\n", "<escape>", '<|"|>', "<|close|>", "<|close|>argument<|sep|>", "</tool_call>",
        "</tool_calls>", "</TOOLCALL>", '"', "}", "]", '"}', '"}\n</tool_call>', "null", "true", "1e999", "NaN", "<",
        "\n", " ", ",", "a", "É", "{", "Infinity", "'", "<|call|>", "<|end|>", "</seed:tool_call>", "```",
        "<|tool_call_end|>", "</atem:function_calls>", ")", "2024-01-01",
    ]  # fmt: skip
    return [*marks, *FORMS[name].tokens]


@pytest.mark.parametrize("name", FORMS)
def test_what_a_grammar_allows_is_read_as_calls_of_their_schema(
    name: str, tokenizers: dict[str, Any]
) -> None:
    tokenizer, family = tokenizers[name], FORMS[name]
    nested = {} if name == "function gemma" else NESTED
    rng = random.Random(name)
    checker = jsonschema.FormatChecker()
    for _ in range(12):
        every = SCALARS | nested
        properties = {k: every[k] for k in rng.sample(sorted(every), rng.randint(0, 4))}
        required = [k for k in properties if rng.random() < 0.6]
        tools = [tool("search", properties, required), tool("now", {}, [])]
        chat = chat_of(*tools)
        prompt = "" if family.prompt.endswith("<think>") else family.prompt
        constraint = compiled(tokenizer, chat, prompt)
        fmt = find_format(tokenizer)
        if fmt.thinks:
            # It does not think.
            chat.think.CopyFrom(pb.Think(enabled=False))
            constraint = compiled(tokenizer, chat, prompt)
        text = Wanderer(tokenizer, constraint, rng, snippets(name)).answer()
        parser = make_parser(fmt, prompt, chat, ())
        piece = parser.feed(text)
        piece.add(parser.finish())
        assert not piece.content.strip(), (text, properties)
        assert piece.tool_calls, text
        for call in piece.tool_calls:
            [schema] = [t["function"]["parameters"] for t in tools if t["function"]["name"] == call.name]
            jsonschema.validate(json.loads(call.arguments_json), schema, format_checker=checker)


@pytest.mark.parametrize(
    ("name", "properties", "said"),
    [
        ("function gemma", {"tags": NESTED["tags"]}, "'tags' of tool 'search' is a list or an object"),
        ("function gemma", {"my-key": {}}, "'my-key'"),
        ("gemma 4", {"at": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ("glm 4.5", {"x": {"type": "string", "format": "braille"}}, "'braille'"),
        ("minimax m2", {"x": {"type": "string", "not": {"const": "y"}}}, "'x' of tool 'search'"),
        ("minimax m2", {"x": {"const": "null"}}, "none of the values of parameter 'x'"),
        ("muse", {"a b": {"type": "string"}}, "'a b'"),
        ("lfm2", {"from": {"type": "string"}}, "'from'"),
        ("longcat", {"x": {"$ref": "#/properties/y"}, "y": {"items": {"$ref": "#"}}}, "reference"),
    ],
)
def test_what_a_form_cannot_carry_is_refused_by_name(
    name: str, properties: dict[str, Any], said: str, tokenizers: dict[str, Any]
) -> None:
    with pytest.raises(RunnerError, match=re.escape(said)):
        compiled(tokenizers[name], chat_of(tool("search", properties, list(properties))), "")


def test_what_binds_parameters_together_needs_a_form_that_writes_one_object(
    tokenizers: dict[str, Any],
) -> None:
    definition = tool("search", {"a": {"type": "integer"}, "b": {"type": "integer"}}, [])
    definition["function"]["parameters"] |= {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    for name in ("glm 4.5", "qwen3 coder", "lfm2", "gemma 4"):
        with pytest.raises(RunnerError, match="anyOf"):
            compiled(tokenizers[name], chat_of(definition), "")
    for name in ("kimi k3", "granite"):
        assert compiled(tokenizers[name], chat_of(definition), "") is not None


def test_strings_end_where_their_call_does(tokenizers: dict[str, Any]) -> None:
    """A value may hold anything but the mark that ends it, also the beginning of that mark."""
    tokenizer = tokenizers["glm 4.7, its markers plain text"]
    chat = chat_of(tool("search", {"free": SCALARS["free"], "tags": NESTED["tags"]}, []))
    call = "<tool_call>search<arg_key>{}</arg_key><arg_value>{}</arg_value></tool_call>"
    for text, right in (
        (call.format("free", "a < b </arg_valu <</arg_valuex>"), True),
        (call.format("free", "a</arg_value>b"), False),
        (call.format("free", " a"), False),
        (call.format("free", ""), True),
        (call.format("tags", '["<", "</tool_cal"]').replace(", ", ","), True),
        (call.format("tags", '["</tool_call>"]'), False),
    ):
        constraint = compiled(tokenizer, chat, "")
        taken = 0
        for token in [*tokenizer.encode(text, add_special_tokens=False), EOS]:
            mask = constraint.mask()
            if not mask[token // 8] >> token % 8 & 1:
                break
            constraint.accept(token)
            taken += 1
        assert (taken == len(text.encode()) + 1) == right, text
