"""The JSON Schemas that answers and calls of tools follow, and their place in grammars, alike for every engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ollmlx.runner.errors import invalid
from ollmlx.runner.v1 import runner_pb2 as pb

Schema = dict[str, Any]

# With free white space a model may emit blanks until it runs out of tokens.
COMPACT = {"whitespace_flexible": False}
# One blank may stand behind a comma or a colon, as most models have learnt it: held to none they write worse values.
SPACED = {**COMPACT, "item_separator": ", ?", "key_separator": ": ?"}


def json_value(schema: Schema, spacing: Schema = SPACED) -> str:
    """A value of the schema, in Lark."""
    return "%json " + json.dumps({**schema, "x-guidance": spacing})


def answer_schema(constraint: pb.Constraint) -> Schema | None:
    """The schema of a constraint, None if it has another grammar; raises INVALID_ARGUMENT for what is no schema."""
    match constraint.WhichOneof("grammar"):
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            try:
                schema = json.loads(constraint.json_schema)
            except ValueError as err:
                raise invalid(f"the JSON Schema of format is not JSON: {err}") from err
            if isinstance(schema, bool):
                return {} if schema else {"not": {}}
            if not isinstance(schema, dict):
                raise invalid("the JSON Schema of format must be an object")
            return schema
    return None


def chosen_functions(tools: Sequence[Schema], choice: pb.ToolChoice) -> list[Schema]:
    """The functions of the definitions that the choice leaves; raises INVALID_ARGUMENT if there are none."""
    functions = [t.get("function", {}) for t in tools]
    if choice.mode == pb.ToolChoice.MODE_NAMED:
        functions = [f for f in functions if f.get("name") == choice.name]
        if not functions:
            raise invalid(f"tool_choice names {choice.name!r}, which is not among the tools")
    if not functions:
        raise invalid("tool_choice requires a tool, but there are none")
    return functions


def parameters_of(function: Schema) -> Schema:
    """The schema of a function's arguments."""
    return function.get("parameters") or {"type": "object"}


def call_schema(
    functions: Sequence[Schema], name: str, arguments: str, first: Schema | None = None
) -> tuple[Schema, Schema]:
    """The schema of a call that is an object with its name and its arguments, and the definitions ("$defs") that it
    needs at the top: references in the parameters of a function are from their own top."""
    calls = [
        {
            "type": "object",
            "properties": {
                **(first or {}),
                name: {"const": function.get("name")},
                arguments: {"$ref": f"#/$defs/call{i}"},
            },
            "required": [*(first or {}), name, arguments],
            "additionalProperties": False,
        }
        for i, function in enumerate(functions)
    ]
    definitions = {f"call{i}": _moved(parameters_of(f), f"#/$defs/call{i}") for i, f in enumerate(functions)}
    return {"anyOf": calls}, definitions


def _moved(schema: Any, to: str) -> Any:
    """`schema` as it has to be where `to` points to it in another one: with its references."""
    if isinstance(schema, list):
        return [_moved(s, to) for s in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: _moved(v, to) for k, v in schema.items()}
    reference = out.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        out["$ref"] = to + reference[1:]
    return out
