"""Answers that follow a grammar, in the two forms that the library takes.

llguidance is part of the library, but the library goes on without a grammar that it cannot compile. So each is compiled
here first, where its fault can be told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from ollmlx.runner.errors import invalid
from ollmlx.runner.schemas import COMPACT, answer_schema, call_schema, chosen_functions, json_value
from ollmlx.runner.v1 import runner_pb2 as pb

# White space is COMPACT: the library's version of llguidance takes separators for plain text.

# More calls than one, each on a line of its own.
_CALLS = 'call ("\\n" call)*'


def grammar(constraint: pb.Constraint) -> str:
    """A grammar for an answer that follows it from its first token, or from the end of its reasoning. Raises
    INVALID_ARGUMENT for one that is wrong."""
    kind = constraint.WhichOneof("grammar")
    schema = answer_schema(constraint)
    if schema is not None:
        answer = json_value(schema, COMPACT)
    elif kind == "regex":
        import llguidance

        compiled = json.loads(llguidance.LLMatcher.grammar_from_regex(constraint.regex))
        answer = compiled["grammars"][0]["lark_grammar"].removeprefix("start: ")
    elif kind == "lark":
        # As it is, so that it is told what is wrong with it, and not with what it is put into.
        whole = _checked(constraint.lark)
        if not constraint.HasField("reasoning"):
            return whole
        answer = f"%lark {{\n{constraint.lark}\n}}"
    else:
        raise invalid("the constraint is empty")
    if constraint.HasField("reasoning"):
        return _checked(_after_reasoning(constraint.reasoning, answer))
    return _checked(f"start: {answer}")


def _checked(text: str) -> str:
    # As other libraries that few requests need, it is imported when one does: that saves memory.
    import llguidance

    fault = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(text), None)
    if fault:
        raise invalid(f"the format cannot be honoured: {' '.join(fault.split())[:500]}")
    return "%llguidance {}\n" + text


def _after_reasoning(reasoning: pb.Reasoning, answer: str) -> str:
    """A grammar for reasoning, which may be anything up to its end, and then the answer."""
    if not reasoning.end:
        raise invalid("the constraint's reasoning has no end")
    thought = f"thought[lazy]: /(.|\\n)*{re.escape(reasoning.end).replace('/', chr(92) + '/')}/"
    start = f"{json.dumps(reasoning.begin)} thought answer | answer" if reasoning.begin else "thought answer"
    return f"start: {start}\n{thought}\nanswer: {answer}"


def tool_calls(
    tools: Sequence[dict[str, Any]], choice: pb.ToolChoice, markers: tuple[str, str] | None
) -> str:
    """A grammar for an answer of calls: JSON objects with name and arguments, each between the markers of the model's
    own form if that has some."""
    call, definitions = call_schema(chosen_functions(tools, choice), "name", "arguments")
    arguments = json_value({**call, "$defs": definitions}, COMPACT)
    once = choice.single or choice.mode == pb.ToolChoice.MODE_NAMED
    form = (
        "arguments"
        if markers is None
        else f'{_literal(markers[0])} "\\n" arguments "\\n" {_literal(markers[1])}'
    )
    text = f"start: {'call' if once else _CALLS}\ncall: {form}\narguments: {arguments}\n"
    return _checked(text)


def _literal(text: str) -> str:
    return json.dumps(text)


def for_chat(
    constraint: pb.Constraint, *, thinks: bool, reasoning: Callable[[], pb.Reasoning]
) -> dict[str, Any]:
    """Entries of the body of a chat. Where the model may think first, the library lets it, and begins with a schema
    after that; with other grammars it does not, so that these have to know how the model thinks."""
    text = grammar(constraint)
    if not thinks:
        return {"grammar": text}
    if (schema := answer_schema(constraint)) is not None:
        return {"json_schema": schema}
    after = pb.Constraint()
    after.CopyFrom(constraint)
    after.reasoning.CopyFrom(reasoning())
    return {"grammar": grammar(after)}
