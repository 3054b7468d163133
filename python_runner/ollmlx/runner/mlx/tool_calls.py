"""The text between the markers of a tool call, in the forms of several families of models, as name and arguments.

Each function takes that text and the tools' definitions, and raises ValueError (or what its libraries raise) for text
that is no call: what to do with it is not decided here.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

Call = dict[str, Any]
Tools = list[dict[str, Any]]

_NAME_KEYS = ("name", "tool_name", "function_name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
_ID_KEYS = ("id", "tool_call_id")
# What may stand between two calls.
SEPARATORS = " \t\r\n;,"


def normalize(call: Any) -> Call:
    """A call with the keys "name", "arguments" (an object) and, if the model gave one, "id"; raises ValueError."""
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = {**call, **call["function"]}
    if not isinstance(call, dict):
        raise ValueError("a call is not an object")
    name = next((call[k] for k in _NAME_KEYS if isinstance(call.get(k), str)), "")
    if not name:
        raise ValueError("a call has no name")
    arguments = next((call[k] for k in _ARGUMENT_KEYS if k in call), {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not a JSON object")
    out: Call = {"name": name, "arguments": arguments}
    identity = next((call[k] for k in _ID_KEYS if isinstance(call.get(k), str) and call[k]), None)
    return out if identity is None else {**out, "id": identity}


def json_calls(text: str, tools: Tools) -> list[Call]:
    """One call or several as JSON: objects or lists of them, possibly in a fence, possibly as Python writes them."""
    text = re.sub(r"^\s*```\w*\s*|\s*```\s*$", "", text)
    try:
        values = list(_json_values(text))
    except ValueError:
        # Models that write {'name': ...}.
        values = [ast.literal_eval(text.strip())]
    calls = [normalize(c) for value in values for c in (value if isinstance(value, list) else [value])]
    if not calls:
        raise ValueError("there is no call")
    return calls


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at = 0
    while True:
        while at < len(text) and text[at] in SEPARATORS:
            at += 1
        if at == len(text):
            return
        value, at = decoder.raw_decode(text, at)
        yield value


_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)


def xml_calls(text: str, tools: Tools) -> list[Call]:
    """<function=name><parameter=key>value</parameter></function>; values are JSON where the tool wants no string."""
    calls = []
    for name, body in _FUNCTION.findall(text):
        types = _types(tools, name)
        arguments = {}
        for key, value in _PARAMETER.findall(body):
            value = value.removeprefix("\n").removesuffix("\n")
            arguments[key] = value if types.get(key, "string") == "string" else _json_or_text(value)
        calls.append({"name": name.strip(), "arguments": arguments})
    if not calls:
        raise ValueError("there is no function")
    return calls


def _types(tools: Tools, name: str) -> dict[str, Any]:
    for tool in tools:
        function = tool.get("function", {})
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties") or {}
            return {k: v.get("type") for k, v in properties.items() if isinstance(v, dict)}
    return {}


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


_PYTHON_CALL = re.compile(r"^\s*([\w.]+?)(?:\.call)?\((.*)\)\s*$", re.DOTALL)


def llama_calls(text: str, tools: Tools) -> list[Call]:
    """What follows <|python_tag|>: JSON, or a call as Python writes it."""
    if text.lstrip().startswith(("{", "[")):
        return json_calls(text, tools)
    found = _PYTHON_CALL.match(text)
    if found is None:
        raise ValueError("it is neither JSON nor a call")
    call = ast.parse(f"f({found[2]})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise ValueError("its arguments have no names")
    return [{"name": found[1], "arguments": {k.arg: ast.literal_eval(k.value) for k in call.keywords}}]


_DEEPSEEK_CALL = re.compile(r"<｜tool▁call▁begin｜>(.*?)(?:<｜tool▁call▁end｜>|$)", re.DOTALL)
_DEEPSEEK_FENCE = re.compile(r"^([^\n]+)\n```json\n(.*?)\n?```\s*$", re.DOTALL)


def deepseek_calls(text: str, tools: Tools) -> list[Call]:
    """function<sep>name, a fence of JSON (V3, R1), or name<sep>JSON (V3.1)."""
    calls = []
    for call in _DEEPSEEK_CALL.findall(text):
        first, separator, rest = call.partition("<｜tool▁sep｜>")
        if not separator:
            raise ValueError("a call has no separator")
        fenced = _DEEPSEEK_FENCE.match(rest)
        name, arguments = (fenced[1], fenced[2]) if fenced else (first, rest)
        calls.append(normalize({"name": name.strip(), "arguments": json.loads(arguments)}))
    if not calls:
        raise ValueError("there is no call")
    return calls
