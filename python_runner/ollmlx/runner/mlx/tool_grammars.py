"""Grammars, in Lark form, of tool calls in the forms of several families: what `tool_choice` holds an answer to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ollmlx.runner.errors import unsupported
from ollmlx.runner.mlx.chat_format import ChatFormat
from ollmlx.runner.v1 import runner_pb2 as pb

# Makes of a marker what stands for it in Lark: a token, or its text.
Marker = Callable[[str], str]

_COMPACT = {"whitespace_flexible": False}


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
    return write(fmt, tools, once, marker)


def final_message(constraint: pb.Constraint, marker: Marker) -> str:
    """A constraint on the content of a harmony answer, whose final message has a header."""
    kind = constraint.WhichOneof("grammar")
    if kind == "json_object":
        body = _json({"type": "object"})
    elif kind == "json_schema":
        body = _json(json.loads(constraint.json_schema))
    elif kind == "regex":
        body = f"/{constraint.regex.replace('/', chr(92) + '/')}/"
    else:
        raise unsupported(
            "a grammar in Lark form cannot be combined with this model's channels: use JSON or a regex"
        )
    header = f'{marker("<|channel|>")} "final" {marker("<|message|>")}'
    return f"start: {header} body\nbody: {body}\n"


def _json(schema: dict[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _COMPACT})


def _parameters(tool: dict[str, Any]) -> dict[str, Any]:
    return tool.get("parameters") or {"type": "object"}


def _objects(
    tools: list[dict[str, Any]], name: str, arguments: str, first: dict[str, Any] | None = None
) -> Any:
    """The schema of a call that is an object with its name and its arguments."""
    calls = [
        {
            "type": "object",
            "properties": {**(first or {}), name: {"const": tool.get("name")}, arguments: _parameters(tool)},
            "required": [*(first or {}), name, arguments],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"anyOf": calls}


def _tagged_json(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """<tool_call>, an object, </tool_call>: Qwen, Hermes."""
    start, end = marker(fmt.call_start), marker(fmt.call_end)
    repeat = "call" if once else 'call ("\\n" call)*'
    body = _json(_objects(tools, "name", "arguments"))
    return f'start: {repeat}\ncall: {start} "\\n" body "\\n" {end}\nbody: {body}\n'


def _listed_json(name: str, arguments: str, first: dict[str, Any] | None = None) -> Any:
    """A marker and a list of objects: Granite, Nemotron, Command R7B, older Mistrals."""

    def write(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
        calls = {"type": "array", "items": _objects(tools, name, arguments, first), "minItems": 1}
        if once:
            calls["maxItems"] = 1
        end = marker(fmt.call_end) if fmt.call_end else ""
        return f"start: {marker(fmt.call_start)} body {end}\nbody: {_json(calls)}\n"

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
    return f"start: {repeat}\ncall: {_json(_objects(tools, 'name', 'parameters'))}\n"


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
            f"body{i}: {_json(_parameters(tool))}",
        ]
    return "\n".join(lines) + "\n"


def _xml(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """<function=name> with a tag for each parameter: Qwen3-Coder, Seed."""
    start, end = marker(fmt.call_start), marker(fmt.call_end)
    lines = ["start: call" + ("" if once else ' ("\\n" call)*')]
    lines.append("call: " + " | ".join(f"call{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        schema = _parameters(tool)
        parts = [start, json.dumps(f"\n<function={tool.get('name', '')}>\n")]
        for j, (key, value) in enumerate((schema.get("properties") or {}).items()):
            optional = "" if key in schema.get("required", ()) else "?"
            parts.append(f"p{i}_{j}{optional}")
            lines.append(f"p{i}_{j}: {_xml_parameter(key, value)}")
        parts += ['"</function>\\n"', end]
        lines.append(f"call{i}: " + " ".join(parts))
    # Text up to the end of its tag.
    lines.append('text[suffix="\\n</parameter>\\n"]: /(?s:.*)/')
    return "\n".join(lines) + "\n"


def _xml_parameter(key: str, schema: Any) -> str:
    opening = json.dumps(f"<parameter={key}>\n")
    values = schema.get("enum") if isinstance(schema, dict) else None
    closing = '"\\n</parameter>\\n"'
    if values and all(isinstance(v, str) for v in values):
        return f"{opening} ({' | '.join(json.dumps(v) for v in values)}) {closing}"
    if isinstance(schema, dict) and schema.get("type") not in (None, "string"):
        return f"{opening} {_json(schema)} {closing}"
    return f"{opening} text"


def _pythonic(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """[name(key=value, ...)] between markers: LFM2. Values are written as JSON."""
    start, end = marker(fmt.call_start), marker(fmt.call_end)
    lines = [f'start: {start} "[" call' + ("" if once else ' (", " call)*') + f' "]" {end}']
    lines.append("call: " + " | ".join(f"call{i}" for i in range(len(tools))))
    for i, tool in enumerate(tools):
        schema = _parameters(tool)
        required, optional = [], []
        for j, (key, value) in enumerate((schema.get("properties") or {}).items()):
            lines += [f"a{i}_{j}: {json.dumps(f'{key}=')} v{i}_{j}", f"v{i}_{j}: {_json(value)}"]
            (required if key in schema.get("required", ()) else optional).append(f"a{i}_{j}")
        arguments = ' ", " '.join(required)
        if required:
            arguments += "".join(f' (", " {a})?' for a in optional)
        elif optional:
            # The first that is there has no comma before it.
            rest = ["".join(f' (", " {a})?' for a in optional[k + 1 :]) for k in range(len(optional))]
            arguments = "(" + " | ".join(a + r for a, r in zip(optional, rest, strict=True)) + ")?"
        lines.append(f'call{i}: {json.dumps(tool.get("name", "") + "(")} {arguments} ")"')
    return "\n".join(lines) + "\n"


_FAMILIES: dict[str, Callable[[ChatFormat, list[dict[str, Any]], bool, Marker], str]] = {
    "cohere": _listed_json(
        "tool_name", "parameters", {"tool_call_id": {"type": "string", "pattern": "^[0-9]$"}}
    ),
    "deepseek": _deepseek,
    "granite": _listed_json("name", "arguments"),
    "harmony": _harmony,
    "hunyuan": _listed_json("name", "arguments"),
    "json_tools": _tagged_json,
    "kimi_k2": _kimi,
    "llama3": _llama,
    "mistral": _mistral,
    "nemotron": _listed_json("name", "arguments"),
    "phi4": _listed_json("name", "arguments"),
    "pythonic": _pythonic,
    "qwen3_coder": _xml,
    "seed": _xml,
}
