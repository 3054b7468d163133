"""The JSON Schemas of tools' parameters, one parameter at a time, for forms of calls that name each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ollmlx.runner.errors import unsupported
from ollmlx.runner.schemas import Schema, parameters_of

# What binds several parameters together.
_TOGETHER = frozenset(
    "anyOf oneOf allOf not if dependentRequired dependentSchemas dependencies minProperties maxProperties "
    "patternProperties propertyNames unevaluatedProperties".split()
)
# Says something about a value and asserts nothing.
_ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly $comment $schema $id $defs "
    "definitions strict nullable x-order contentMediaType contentEncoding".split()
)
_APPLICATORS = ("anyOf", "oneOf", "allOf")
_DEFINITIONS = ("$defs", "definitions")
# Longest chain of references to references.
_MAX_REFERENCES = 20

_TYPE_OF = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


@dataclass(frozen=True)
class Parameter:
    key: str
    # Without a reference at its top, and with the definitions that references inside it name.
    schema: Schema
    required: bool


def parameters(tool: Schema, form: str) -> list[Parameter]:
    """Each parameter of a tool; raises UNIMPLEMENTED where a schema cannot be taken apart."""
    root = parameters_of(tool)
    whole = resolved(root, root)
    if together := sorted(_TOGETHER & whole.keys()):
        raise unsupported(
            f"tool_choice cannot be kept with {form}: the parameters of tool {tool.get('name')!r} use "
            f"{', '.join(together)}, and such calls name one parameter after the other"
        )
    required = whole.get("required") or ()
    properties = dict(whole.get("properties") or {})
    for key in required:
        properties.setdefault(key, {})
    found = []
    for key, schema in properties.items():
        if schema is False:
            continue
        schema = resolved(schema, root)
        if any(not r.startswith(("#/$defs/", "#/definitions/")) for r in _references(schema)):
            raise unsupported(
                f"tool_choice cannot be kept with {form}: parameter {key!r} of tool {tool.get('name')!r} has a "
                "reference to something else than #/$defs"
            )
        definitions = {k: root[k] for k in _DEFINITIONS if k in root}
        found.append(Parameter(key, {**schema, **definitions}, key in required))
    return found


def resolved(schema: Any, root: Schema) -> Schema:
    """`schema` with what it refers to in place of the reference."""
    if not isinstance(schema, dict):
        return {}
    for _ in range(_MAX_REFERENCES):
        rest = {k: v for k, v in schema.items() if k not in ("$ref", "allOf")}
        inner = schema.get("allOf")
        if "$ref" in schema:
            target = _find(root, schema["$ref"])
        elif inner and len(inner) == 1 and isinstance(inner[0], dict) and rest.keys() <= _ANNOTATIONS:
            # How some libraries write a reference with a description.
            target = inner[0]
        else:
            break
        if target is None:
            break
        schema = {**target, **rest}
    return schema


def _find(root: Schema, reference: Any) -> Schema | None:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    at: Any = root
    for part in reference[2:].split("/"):
        at = at.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(at, dict) else None
    return at if isinstance(at, dict) else None


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [r for v in value for r in _references(v)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [r for k, v in value.items() if k not in _DEFINITIONS for r in _references(v)]


def asserts(schema: Schema) -> set[str]:
    """The keywords of a schema that assert something."""
    return set(schema) - _ANNOTATIONS


def types(schema: Any, root: Schema) -> set[str] | None:
    """The types that a value may have, as far as the schema tells; None: any."""
    schema = resolved(schema, root)
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {k for k in kind if isinstance(k, str)}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values:
        return {_TYPE_OF.get(type(v), "null") for v in values}
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            found = [types(s, root) for s in schema[key]]
            return None if None in found else set().union(*found)
    return None


def string_part(schema: Schema) -> Schema | None:
    """The strings among the values of a schema, as a schema of its own; None: there are none, or it cannot be told."""
    says = asserts(schema)
    if not says:
        return {"type": "string"}
    if "const" in says:
        return {"enum": [schema["const"]]} if isinstance(schema["const"], str) else None
    if "enum" in says:
        strings = [v for v in schema["enum"] if isinstance(v, str)]
        return {"enum": strings} if strings and says <= {"enum", "type"} else None
    kind = schema.get("type")
    if kind == "string" or (isinstance(kind, list) and "string" in kind):
        if says & {*_APPLICATORS, "not", "if", "$ref"}:
            return None
        return {"type": "string"} | {
            k: schema[k] for k in ("minLength", "maxLength", "pattern", "format") if k in schema
        }
    for key in ("anyOf", "oneOf"):
        if says == {key}:
            parts = [part for s in schema[key] if (part := string_part(resolved(s, schema))) is not None]
            return parts[0] if len(parts) == 1 or (parts and key == "anyOf") else None
    return None


def expanded(tool: Schema) -> Schema:
    """The definition of a tool for parsers that look no further than the `type` of a parameter: references resolved."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    root = parameters_of(function)
    whole = resolved(root, root)
    properties = whole.get("properties")
    known = {k: resolved(s, root) for k, s in properties.items()} if isinstance(properties, dict) else {}
    return {**tool, "function": {**function, "parameters": {**whole, "properties": known}}}


def simplified(tool: Schema) -> Schema:
    """An expanded definition for parsers that, where the type is missing or a list of several, take strings for what
    they are not, and other values for strings."""
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    root = parameters_of(function)
    simple = {}
    for key, schema in root.get("properties", {}).items():
        only = (types(schema, root) or set()) - {"null"}
        # What an object is written as is read as JSON, whatever JSON it turns out to be.
        simple[key] = {"type": only.pop() if len(only) == 1 else "object"}
    return {**tool, "function": {**function, "parameters": {"type": "object", "properties": simple}}}


def without(schema: Any, marks: Sequence[str]) -> Any:
    """`schema` with strings that contain none of `marks`, which would end the call in the middle of them."""
    firsts = "".join(sorted({_literal(m[0]) for m in marks if m}))
    return _without(schema, [{"pattern": f"^{_lacks(m)}$"} for m in marks if m], f"^[^{firsts}]*$")


def _without(schema: Any, patterns: list[Schema], keys: str) -> Any:
    if not isinstance(schema, dict) or not patterns:
        return schema
    out = dict(schema)
    for key in (*_APPLICATORS, "prefixItems"):
        if isinstance(out.get(key), list):
            out[key] = [_without(s, patterns, keys) for s in out[key]]
    for key in ("properties", "patternProperties", *_DEFINITIONS):
        if isinstance(out.get(key), dict):
            out[key] = {k: _without(s, patterns, keys) for k, s in out[key].items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _without(out[key], patterns, keys)
    if isinstance(out.get("additionalProperties"), dict) and not out.keys() & {
        "properties",
        "patternProperties",
    }:
        # Keys of the model's choice.
        out["patternProperties"], out["additionalProperties"] = {keys: out["additionalProperties"]}, False
    kind = out.get("type")
    if (kind == "string" or (isinstance(kind, list) and "string" in kind)) and not out.keys() & {
        "enum",
        "const",
    }:
        out["allOf"] = [*out.get("allOf", ()), *patterns]
    return out


def _lacks(mark: str) -> str:
    """A regular expression of text in which `mark` does not occur; its first character occurs in it but once."""
    first = _literal(mark[0])
    # After the first character: text without it that does not begin with the rest of the mark.
    rest = ""
    for char in reversed(mark[1:]):
        this = _literal(char)
        rest = (
            f"(?:[^{first}{this}][^{first}]*|{this}{rest})?" if rest else f"(?:[^{first}{this}][^{first}]*)?"
        )
    return f"[^{first}]*(?:{first}{rest})*"


def _literal(char: str) -> str:
    return "\\" + char if char in r"\^$.|?*+()[]{}-/&~#" else char
