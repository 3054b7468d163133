"""Grammars, in Lark form, of tool calls in the forms of several families: what `tool_choice` holds an answer to."""

from __future__ import annotations

import json
import keyword
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ollmlx.runner.errors import RunnerError, unsupported
from ollmlx.runner.mlx import gemma_grammars
from ollmlx.runner.mlx.chat_format import ChatFormat
from ollmlx.runner.mlx.tool_schemas import (
    Parameter,
    parameters,
    string_part,
    types,
    without,
)
from ollmlx.runner.mlx.tool_text import Marker, Reading, literal, separated, value
from ollmlx.runner.schemas import answer_schema, call_schema, json_value, parameters_of
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

Writer = Callable[[ChatFormat, list[dict[str, Any]], bool, Marker], str]


# What Python takes for the name of an argument.
_IDENTIFIER = r"[^\W\d]\w*"
# Names that every mark-up leaves as they are.
_NAME = r"[^\s<>\"'=&{}\[\]]+"
_LINE = literal("\n")


def call_grammar(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """Calls of `tools` (their functions), one of them or more; raises UNIMPLEMENTED for a form that is not known."""
    write = _FAMILIES.get(fmt.family)
    if write is None:
        form = (
            f"the {fmt.family} form of its tool calls"
            if fmt.family
            else "this model, which marks no tool calls"
        )
        raise unsupported(f"tool_choice can only be auto or none with {form}: there is no grammar for it")
    if fmt.family in _WHOLE_OBJECTS:
        ends = (fmt.call_end, *_INNER_ENDS.get(fmt.family, ()))
        tools = [{**t, "parameters": without(parameters_of(t), ends)} for t in tools]
    return write(fmt, tools, once, marker)


def final_message(constraint: pb.Constraint, marker: Marker) -> str:
    """A constraint on the content of a harmony answer, whose final message has a header."""
    schema = answer_schema(constraint)
    if schema is not None:
        body = json_value(schema)
    elif constraint.WhichOneof("grammar") == "regex":
        body = f"/{constraint.regex.replace('/', chr(92) + '/')}/"
    else:
        raise unsupported(
            "a grammar in Lark form cannot be combined with this model's channels: use JSON or a regex"
        )
    header = f'{marker("<|channel|>")} "final" {marker("<|message|>")}'
    return f"start: {header} body\nbody: {body}\n"


def _tagged_json(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """<tool_call>, an object, </tool_call>: Qwen, Hermes."""
    start, end = marker(fmt.call_start), marker(fmt.call_end)
    repeat = "call" if once else f"call ({_LINE} call)*"
    call, definitions = call_schema(tools, "name", "arguments")
    body = json_value({**call, "$defs": definitions})
    return f"start: {repeat}\ncall: {start} {_LINE} body {_LINE} {end}\nbody: {body}\n"


def _listed_json(name: str, arguments: str, first: dict[str, Any] | None = None) -> Writer:
    """A marker and a list of objects: Granite, Nemotron, Command R7B, older Mistrals."""

    def write(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
        call, definitions = call_schema(tools, name, arguments, first)
        calls = {"type": "array", "items": call, "minItems": 1, "$defs": definitions}
        if once:
            calls["maxItems"] = 1
        end = marker(fmt.call_end) if fmt.call_end else ""
        return f"start: {marker(fmt.call_start)} body {end}\nbody: {json_value(calls)}\n"

    return write


def _mistral(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """A list of objects, or [TOOL_CALLS]name[ARGS] and an object for each call."""
    if not fmt.named_arguments:
        return _listed_json("name", "arguments")(fmt, tools, once, marker)
    return _alternatives(
        tools,
        once,
        lambda name, body: f"{marker(fmt.call_start)} {json.dumps(name)} {marker('[ARGS]')} {body}",
    )


def _llama(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """An object and nothing else."""
    repeat = "call" if once else 'call ("; " call)*'
    body, definitions = call_schema(tools, "name", "parameters")
    return f"start: {repeat}\ncall: {json_value({**body, '$defs': definitions})}\n"


def _deepseek(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """The form of V3 and R1, which V3.1 reads too."""
    begin, separator, end = (
        marker(m) for m in ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
    )

    def call(name: str, body: str) -> str:
        opening = json.dumps(f"{name}\n```json\n")
        return f'{begin} "function" {separator} {opening} {body} "\\n```" {end}'

    return _alternatives(tools, once, call, marker(fmt.call_start), marker(fmt.call_end), between='"\\n"')


def _kimi(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    begin, separator, end = (
        marker(m) for m in ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>")
    )
    return _alternatives(
        tools,
        once,
        lambda name, body: (
            f"{begin} {json.dumps(f'functions.{name}:')} /[0-9]{{1,3}}/ {separator} {body} {end}"
        ),
        marker(fmt.call_start),
        marker(fmt.call_end),
    )


def _harmony(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """One call: it ends the answer."""
    channel, kind, message = (marker(m) for m in ("<|channel|>", "<|constrain|>", "<|message|>"))
    return _alternatives(
        tools,
        True,
        lambda name, body: (
            f'{channel} {json.dumps(f"commentary to=functions.{name} ")} {kind} "json" {message} {body}'
        ),
    )


def _alternatives(
    tools: list[dict[str, Any]],
    once: bool,
    call: Callable[[str, str], str],
    before: str = "",
    after: str = "",
    between: str = "",
) -> str:
    """Calls that write their name before their arguments: one rule for each tool."""
    lines = [f"start: {before} call {'' if once else f'({between} call)*'} {after}"]
    lines.append("call: " + " | ".join(f"call{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        lines += [
            f"call{i}: " + call(tool.get("name", ""), f"body{i}"),
            f"body{i}: {json_value(parameters_of(tool))}",
        ]
    return "\n".join(lines) + "\n"


def _choice(tools: list[dict[str, Any]]) -> str:
    return "call: " + " | ".join(f"call{i}" for i in range(len(tools)))


def _writable(pattern: str, name: str, what: str, form: str) -> str:
    """A name as it is, if the form can carry it: others would come back as something else."""
    if re.fullmatch(pattern, name):
        return name
    raise unsupported(f"tool_choice cannot be kept: {form} cannot carry a {what} called {name!r}")


def _pythonic(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """[name(key=value, ...)] between markers: LFM2. Values are written as JSON."""
    form = "the pythonic form of calls"
    start, end = marker(fmt.call_start), marker(fmt.call_end)
    lines = [f'start: {start} "[" call' + ("" if once else ' (", " call)*') + f' "]" {end}', _choice(tools)]
    reserved = "|".join(keyword.kwlist)
    for i, tool in enumerate(tools):
        name = _writable(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*", tool.get("name", ""), "tool", form)
        required, optional = [], []
        for j, p in enumerate(parameters(tool, form)):
            key = _writable(rf"(?!({reserved})\Z){_IDENTIFIER}", p.key, "parameter", form)
            lines += [
                f"a{i}_{j}: {literal(f'{key}=')} v{i}_{j}",
                f"v{i}_{j}: {json_value(without(p.schema, (fmt.call_end,)))}",
            ]
            (required if p.required else optional).append(f"a{i}_{j}")
        lines.append(f'call{i}: {literal(f"{name}(")} {separated(required, optional, literal(", "))} ")"')
    return "\n".join(lines) + "\n"


def _by_parameter(
    tools: list[dict[str, Any]],
    start: str,
    form: str,
    call: Callable[[str, str], str],
    parameter: Callable[[str, str], str],
    close: str,
    reading: Reading,
    alone: Callable[[str], str] | None = None,
) -> str:
    """Calls that write one parameter after the other.

    `call` is given the name of a tool and its parameters, `parameter` a key and its value up to and with `close`;
    `alone` makes a call without parameters, where that has another form.
    """
    lines = [start, _choice(tools)]
    for i, tool in enumerate(tools):
        name = _writable(_NAME, tool.get("name", ""), "tool", form)
        required, optional = [], []
        for j, p in enumerate(parameters(tool, form)):
            key, what = _writable(_NAME, p.key, "parameter", form), f"parameter {p.key!r} of tool {name!r}"
            lines.append(f"p{i}_{j}: {parameter(key, f'v{i}_{j}')}")
            lines += value(f"v{i}_{j}", p.schema, reading, close, what)
            (required if p.required else optional).append(f"p{i}_{j}")
        if alone is None:
            ways = [call(name, " ".join([*required, *(f"{o}?" for o in optional)]))]
        else:
            ways = [] if required else [alone(name)]
            if required or optional:
                ways.append(call(name, separated(required, optional, "", some=True)))
        lines.append(f"call{i}: {' | '.join(ways)}")
    return "\n".join(lines) + "\n"


def _xml(reading: Reading) -> Writer:
    """<function=name> with a tag for each parameter: Qwen3-Coder, Seed."""

    def write(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
        start, end = marker(fmt.call_start), marker(fmt.call_end)

        def call(name: str, arguments: str) -> str:
            head, foot = literal(f"\n<function={name}>\n"), literal("</function>\n")
            return f"{start} {head} {arguments} {foot} {end}"

        return _by_parameter(
            tools,
            "start: call" + ("" if once else f" ({_LINE} call)*"),
            f"the {fmt.family} form of calls",
            call,
            lambda key, text: literal(f"<parameter={key}>\n") + " " + text,
            literal("\n</parameter>\n"),
            replace(reading, ends=("</parameter>", "</function>", fmt.call_end)),
        )

    return write


def _arg_pairs(prefix: str) -> Writer:
    """A name, and tagged pairs of keys and values: GLM 4.x, LongCat. Their versions differ in line breaks."""

    def write(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
        start, end = marker(fmt.call_start), marker(fmt.call_end)
        key_start, key_end = marker(f"<{prefix}arg_key>"), marker(f"</{prefix}arg_key>")
        value_start, value_end = marker(f"<{prefix}arg_value>"), marker(f"</{prefix}arg_value>")

        def alone(name: str) -> str:
            # LongCat's parser looks for a key, or for an object.
            text = json.dumps({"name": name, "arguments": {}}, ensure_ascii=False) if prefix else name
            return f"{start} {literal(text)} {end}"

        return _by_parameter(
            tools,
            "start: call" + ("" if once else f" ({_LINE}? call)*"),
            f"the {fmt.family} form of calls",
            lambda name, arguments: f"{start} {literal(name)} {_LINE}? {arguments} {end}",
            lambda key, text: f"{key_start} {literal(key)} {key_end} {_LINE}? {value_start} {text} {_LINE}?",
            value_end,
            Reading((f"</{prefix}arg_value>", fmt.call_end), strips=True),
            alone,
        )

    return write


def _invoked(prefix: str, reading: Reading) -> Writer:
    """<invoke name="..."> with an element for each parameter: MiniMax, Muse."""

    def write(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
        foot, close = f"</{prefix}invoke>", f"</{prefix}parameter>"
        return _by_parameter(
            tools,
            f"start: {marker(fmt.call_start)} {_LINE} call{'' if once else '+'} {marker(fmt.call_end)}",
            f"the {fmt.family} form of calls",
            lambda name, arguments: " ".join(
                (literal(f'<{prefix}invoke name="{name}">\n'), arguments, literal(foot + "\n"))
            ),
            lambda key, text: " ".join((literal(f'<{prefix}parameter name="{key}">'), text, _LINE)),
            literal(close),
            replace(reading, ends=(close, foot, fmt.call_end)),
        )

    return write


def _minicpm(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    return _by_parameter(
        tools,
        "start: call" + ("" if once else f" ({_LINE}? call)*"),
        "the MiniCPM form of calls",
        lambda name, arguments: " ".join(
            (literal(f'<function name="{name}">'), arguments, literal("</function>"))
        ),
        lambda key, text: literal(f'<param name="{key}">') + " " + text,
        literal("</param>"),
        Reading(("</param>", "</function>"), strips=True, plain="meant", null=True, cdata=True),
    )


def _kimi_k3(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """Arguments with their types, or all of them as one object."""
    form = "the Kimi K3 form of calls"
    opening, closing, sep = marker("<|open|>"), marker("<|close|>"), marker("<|sep|>")
    text = Reading(("<|close|>",), plain="meant")
    lines = [
        f'start: {opening} "tools" {sep} call{"" if once else "+"} {closing} "tools" {sep}',
        _choice(tools),
    ]

    def argument(name: str, p: Parameter, what: str) -> str:
        part, ways = string_part(p.schema), []
        if part is not None:
            lines.extend(value(f"{name}_text", part, text, closing, what))
            string = literal('"string"')
            ways.append(f"{string} {sep} {name}_text")
        some = (types(p.schema, p.schema) or set()) - {"string"}
        if some or part is None or types(p.schema, p.schema) is None:
            lines.append(f"{name}_json: {json_value(without(p.schema, text.ends))}")
            # Whatever is no string is read as JSON.
            kind = literal(f'"{some.pop() if len(some) == 1 else "object"}"')
            ways.append(f"{kind} {sep} {name}_json {closing}")
        key = literal(f'argument key="{_attribute(p.key)}" type=')
        lines.append(f'{name}: {opening} {key} ({" | ".join(ways)}) "argument" {sep}')
        return name if p.required else f"{name}?"

    for i, tool in enumerate(tools):
        name = _writable(r"[^<>\n]+", tool.get("name", ""), "tool", form)
        head = literal(f'call tool="{_attribute(name)}" index="')
        json_head, json_foot = literal('json type="object"'), literal("json")
        whole = f"{opening} {json_head} {sep} all{i} {closing} {json_foot} {sep}"
        lines.append(f"all{i}: {json_value(without(parameters_of(tool), text.ends))}")
        ways = [whole]
        try:
            ways.append(
                " ".join(
                    argument(f"p{i}_{j}", p, f"parameter {p.key!r} of tool {name!r}")
                    for j, p in enumerate(parameters(tool, form))
                )
            )
        except RunnerError:
            log.debug("only as one object", extra={"tool": name})
        lines.append(
            f'call{i}: {opening} {head} /[0-9]{{1,3}}/ "\\"" {sep} ({" | ".join(ways)}) {closing} "call" {sep}'
        )
    return "\n".join(lines) + "\n"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;")


_FAMILIES: dict[str, Writer] = {
    "cohere": _listed_json(
        "tool_name", "parameters", {"tool_call_id": {"type": "string", "pattern": "^[0-9]$"}}
    ),
    "deepseek": _deepseek,
    "function_gemma": gemma_grammars.flat_calls,
    "gemma4": gemma_grammars.nested_calls,
    "glm47": _arg_pairs(""),
    "granite": _listed_json("name", "arguments"),
    "harmony": _harmony,
    "hunyuan": _listed_json("name", "arguments"),
    "json_tools": _tagged_json,
    "kimi_k2": _kimi,
    "kimi_k3": _kimi_k3,
    "llama3": _llama,
    "longcat": _arg_pairs("longcat_"),
    "minicpm5": _minicpm,
    "minimax_m2": _invoked("", Reading(strips=True, plain="meant", null=True)),
    "mistral": _mistral,
    # Values are JSON if they can be, and text else.
    "muse_spark": _invoked("atem:", Reading(strips=True, plain="none")),
    "nemotron": _listed_json("name", "arguments"),
    "phi4": _listed_json("name", "arguments"),
    "pythonic": _pythonic,
    "qwen3_coder": _xml(Reading(plain="meant", null=True)),
    "seed": _xml(Reading()),
}
# Forms whose arguments are one object of JSON.
_WHOLE_OBJECTS = frozenset(
    "cohere deepseek granite harmony hunyuan json_tools kimi_k2 llama3 mistral nemotron phi4".split()
)
# What ends a call in the middle of a string of its JSON, beside the end of all calls.
_INNER_ENDS = {
    "deepseek": ("<｜tool▁call▁end｜>",),
    "harmony": (
        "<|start|>",
        "<|channel|>",
        "<|constrain|>",
        "<|message|>",
        "<|end|>",
        "<|call|>",
        "<|return|>",
    ),
    "kimi_k2": ("<|tool_call_end|>",),
}
