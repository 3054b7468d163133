"""Grammars of calls as the Gemma family writes them: call:name{key:value,...}, strings between marks of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ollmlx.runner.errors import unsupported
from ollmlx.runner.mlx.chat_format import ChatFormat
from ollmlx.runner.mlx.tool_schemas import (
    Parameter,
    asserts,
    parameters,
    resolved,
    string_part,
    types,
)
from ollmlx.runner.mlx.tool_text import Marker, Reading, literal, separated, value
from ollmlx.runner.schemas import Schema, json_value

_QUOTE = '<|"|>'
_ESCAPE = "<escape>"
_SCALARS = ("boolean", "integer", "null", "number")
_ALL = (*_SCALARS, "string", "array", "object")
# Of each type, what a schema may say about it here.
_SAYABLE = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}


def flat_calls(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """FunctionGemma: values are strings, numbers, true, false and null. Its parser knows no lists and no objects."""
    form = "the FunctionGemma form of calls"
    start, end, escape = marker(fmt.call_start), marker(fmt.call_end), marker(_ESCAPE)
    # The parser takes the first brace for the end, in a string too.
    text = Reading(("}", _ESCAPE, fmt.call_end), plain="meant")
    lines: list[str] = []

    def argument(name: str, p: Parameter, what: str) -> bool:
        some, part, ways = types(p.schema, p.schema), string_part(p.schema), []
        if part is not None:
            lines.extend(value(f"{name}_text", part, text, escape, what))
            ways.append(f"{escape} {name}_text")
        scalars = [t for t in _SCALARS if some is None or t in some]
        if scalars:
            schema = p.schema if some and some <= set(_SCALARS) else {"allOf": [p.schema, {"type": scalars}]}
            lines.append(f"{name}_json: {json_value(schema)}")
            ways.append(f"{name}_json")
        if ways:
            lines.append(f"{name}: {literal(_key(p.key, what, form) + ':')} ({' | '.join(ways)})")
        elif p.required:
            raise unsupported(
                f"tool_choice cannot be kept: {what} is a list or an object, which {form} cannot carry"
            )
        return bool(ways)

    calls = []
    for i, tool in enumerate(tools):
        name = _name(r"\w+", tool, form)
        required, optional = [], []
        for j, p in enumerate(parameters(tool, form)):
            if argument(f"a{i}_{j}", p, f"parameter {p.key!r} of tool {name!r}"):
                (required if p.required else optional).append(f"a{i}_{j}")
        calls.append(
            f'call{i}: {literal(f"call:{name}{{")} {separated(required, optional, literal(","))} "}}"'
        )
    return _with_calls(start, end, once, calls, lines)


def nested_calls(fmt: ChatFormat, tools: list[dict[str, Any]], once: bool, marker: Marker) -> str:
    """Gemma 4: as JSON, but for the quotes of strings and the names of keys, which have none."""
    form = "the Gemma 4 form of calls"
    start, end = marker(fmt.call_start), marker(fmt.call_end)
    calls, lines = [], []
    for i, tool in enumerate(tools):
        name = _name(r"[\w-]+", tool, form)
        values = _Values(f"t{i}", Reading((_QUOTE, fmt.call_end), plain="meant"), marker(_QUOTE), form, name)
        members = [(p.key, p.schema, p.required) for p in parameters(tool, form)]
        root = next((s for _, s, _ in members), {})
        calls.append(f"call{i}: {literal(f'call:{name}')} {values.members(members, root)}")
        lines += values.lines
    return _with_calls(start, end, once, calls, lines)


def _with_calls(start: str, end: str, once: bool, calls: Sequence[str], lines: Sequence[str]) -> str:
    one = " | ".join(f"call{i}" for i in range(len(calls)))
    return (
        "\n".join([f"start: tagged{'' if once else '+'}", f"tagged: {start} ({one}) {end}", *calls, *lines])
        + "\n"
    )


def _name(pattern: str, tool: Schema, form: str) -> str:
    name = tool.get("name", "")
    if not re.fullmatch(pattern, name):
        raise unsupported(f"tool_choice cannot be kept: {form} cannot carry a tool called {name!r}")
    return name


def _key(key: str, what: str, form: str) -> str:
    if not re.fullmatch(r"\w+", key):
        raise unsupported(
            f"tool_choice cannot be kept: {form} cannot carry {what}, only keys of letters and digits"
        )
    return key


class _Values:
    """Rules of the values of one tool's arguments."""

    def __init__(self, prefix: str, text: Reading, quote: str, form: str, tool: str) -> None:
        self.lines: list[str] = []
        self._prefix = prefix
        self._text = text
        self._quote = quote
        self._form = form
        self._tool = tool
        # Rules by what they are for: a schema may refer to itself.
        self._rules: dict[str, str] = {}

    def members(self, members: Sequence[tuple[str, Any, bool]], root: Schema) -> str:
        """An object of these keys, with their schemas and whether they are required."""
        required, optional = [], []
        for key, schema, needed in members:
            what = f"parameter {key!r} of tool {self._tool!r}"
            rule = f"{literal(_key(key, what, self._form) + ':')} {self._rule(schema, root)}"
            (required if needed else optional).append(self._add(rule))
        return f'"{{" {separated(required, optional, literal(","))} "}}"'

    def _add(self, body: str) -> str:
        name = f"{self._prefix}_{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def _rule(self, schema: Any, root: Schema) -> str:
        schema = resolved(schema, root)
        same = json.dumps(
            {k: v for k, v in schema.items() if k not in ("$defs", "definitions")}, sort_keys=True
        )
        if same not in self._rules:
            self._rules[same] = name = self._add("")
            index = len(self.lines) - 1
            self.lines[index] += " | ".join(self._ways(name, schema, root))
        return self._rules[same]

    def _ways(self, name: str, schema: Schema, root: Schema) -> list[str]:
        says = asserts(schema)
        for key in ("const", "enum"):
            if key in says:
                values = [schema[key]] if key == "const" else schema[key]
                some = types(schema.get("type") and {"type": schema["type"]}, root)
                return [
                    self._write(v)
                    for v in values
                    if (some is None or types({"const": v}, root) <= some) and self._can_write(v)
                ]
        for key in ("anyOf", "oneOf"):
            if says == {key}:
                return [self._rule(s, root) for s in schema[key]]
        kinds = schema.get("type", _ALL)
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        known = {"type"}.union(*(_SAYABLE.get(k, set()) for k in kinds))
        if says - known:
            raise unsupported(
                f"tool_choice cannot be kept with {self._form}: the parameters of tool {self._tool!r} use "
                f"{', '.join(sorted(says - known))}"
            )
        return [way for kind in kinds for way in self._of_type(f"{name}_{kind}", kind, schema, root)]

    def _of_type(self, name: str, kind: str, schema: Schema, root: Schema) -> list[str]:
        said = {k: schema[k] for k in _SAYABLE.get(kind, ()) if k in schema}
        if kind == "string":
            what = f"a value in the arguments of tool {self._tool!r}"
            self.lines += value(name, {"type": "string", **said}, self._text, self._quote, what)
            return [f"{self._quote} {name}"]
        if kind == "array":
            item = self._rule(said.get("items", {}), root)
            least, most = said.get("minItems", 0), said.get("maxItems")
            if most == 0:
                return ['"[" "]"']
            more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}'
            return [f'"[" {item} {more} "]"', *(['"[" "]"'] if least == 0 else [])]
        if kind == "object":
            return [self._object(said, root)]
        # Numbers, true, false and null are those of JSON.
        self.lines.append(f"{name}: {json_value({'type': kind, **said})}")
        return [name]

    def _object(self, said: Schema, root: Schema) -> str:
        required, properties = said.get("required", ()), said.get("properties") or {}
        more = said.get("additionalProperties", True)
        if properties or required or more is False:
            keys = [*properties, *(k for k in required if k not in properties)]
            return self.members([(k, properties.get(k, {}), k in required) for k in keys], root)
        member = self._add(f'/\\w{{1,40}}/ ":" {self._rule({} if more is True else more, root)}')
        return f'"{{" ({member} ("," {member})*)? "}}"'

    def _can_write(self, value: Any) -> bool:
        return not any(
            end in json.dumps(value, ensure_ascii=False) for end in (self._text.ends[1], '<|\\"|>')
        )

    def _write(self, value: Any) -> str:
        if isinstance(value, str):
            return f"{self._quote} {literal(value) if value else ''} {self._quote}"
        if isinstance(value, list):
            items = f" {literal(',')} ".join(self._write(v) for v in value)
            return f'"[" {items} "]"'
        if isinstance(value, dict):
            parts = [
                f"{literal(_key(k, repr(k), self._form) + ':')} {self._write(v)}" for k, v in value.items()
            ]
            return '"{" ' + f" {literal(',')} ".join(parts) + ' "}"'
        return literal(json.dumps(value))
