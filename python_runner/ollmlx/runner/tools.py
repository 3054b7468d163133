"""Definitions of tools, checked alike for every engine."""

from __future__ import annotations

import json
from typing import Any

from ollmlx.runner.errors import invalid
from ollmlx.runner.v1 import runner_pb2 as pb


def definition(tool: pb.Tool) -> dict[str, Any]:
    """The definition in OpenAI's form; raises INVALID_ARGUMENT for what is no JSON object."""
    try:
        value = json.loads(tool.json)
    except ValueError as err:
        raise invalid(f"a tool definition is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise invalid("a tool definition must be a JSON object")
    return value
