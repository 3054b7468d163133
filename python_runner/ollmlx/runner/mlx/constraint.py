"""Answers that follow a grammar: JSON, a JSON Schema, a regular expression, or calls of given tools.

llguidance compiles the grammar and says which tokens may come next; the mask is applied with plain MLX
operations, so it works on every device (llguidance's own MLX kernel needs Metal). White space in JSON is
compact: with free white space a model may emit blanks until it runs out of tokens.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.hf

from ollmlx.runner.errors import RunnerError, internal, invalid, unsupported
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

_COMPACT = {"whitespace_flexible": False}


class GrammarCompiler:
    """Makes the constraints of one model."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    @functools.cached_property
    def _ll_tokenizer(self) -> Any:
        """Made for the first request that needs it: it walks the vocabulary, which takes up to seconds."""
        tokenizer = self._tokenizer
        try:
            return llguidance.hf.from_tokenizer(
                tokenizer._tokenizer,
                n_vocab=max(self._vocab_size, len(tokenizer)),
                eos_token=sorted(tokenizer.eos_token_ids),
            )
        except Exception as err:
            raise unsupported(f"structured output does not work with this model's tokenizer: {err}") from err

    def compile(self, request: pb.GenerateRequest, prompt: str) -> Constraint | None:
        """The constraint that a request asks for, or None; `prompt` is its rendered text.

        Raises INVALID_ARGUMENT that names what is wrong with a grammar or a schema.
        """
        chat = request.chat if request.WhichOneof("input") == "chat" else None
        if request.HasField("constraint"):
            grammar = _grammar(request.constraint)
        elif chat is not None and chat.tool_choice.mode in (
            pb.ToolChoice.MODE_REQUIRED,
            pb.ToolChoice.MODE_NAMED,
        ):
            grammar = self._tool_call_grammar(chat)
        else:
            return None
        failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, self._ll_tokenizer)
        if failed:
            raise invalid(f"the format cannot be honoured: {_reason(messages)}")
        for message in messages:
            log.warning("grammar", extra={"warning": message, "trace_id": request.trace_id})
        matcher = llguidance.LLMatcher(self._ll_tokenizer, grammar)
        return Constraint(matcher, *self._thinking(chat, prompt))

    def _thinking(self, chat: pb.Chat | None, prompt: str) -> tuple[Sequence[int], Sequence[int], bool]:
        """Tokens that begin and end thinking (empty: there is none), and whether the prompt has begun it."""
        if chat is None or not self._tokenizer.has_thinking:
            return (), (), False
        begin, end = self._tokenizer.think_start_tokens, self._tokenizer.think_end_tokens
        if prompt.rstrip().endswith(self._tokenizer.think_start):
            return begin, end, True
        if chat.HasField("think") and not chat.think.enabled:
            return (), (), False
        return begin, end, False

    def _tool_call_grammar(self, chat: pb.Chat) -> str:
        """One or more calls in the JSON form of the Qwen and Hermes families, after any thinking."""
        tokenizer = self._tokenizer
        if tokenizer.tool_call_start != "<tool_call>" or tokenizer.tool_call_end != "</tool_call>":
            raise unsupported("tool_choice can only be auto or none with this model's form of tool calls")
        tools = [json.loads(t.json).get("function", {}) for t in chat.tools]
        if chat.tool_choice.mode == pb.ToolChoice.MODE_NAMED:
            tools = [t for t in tools if t.get("name") == chat.tool_choice.name]
            if not tools:
                raise invalid(f"tool_choice names {chat.tool_choice.name!r}, which is not among the tools")
        if not tools:
            raise invalid("tool_choice requires a tool, but there are none")
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.get("name")},
                    "arguments": tool.get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
        schema = json.dumps({"anyOf": calls, "x-guidance": _COMPACT})
        start, end = (self._marker(m) for m in (tokenizer.tool_call_start, tokenizer.tool_call_end))
        once = chat.tool_choice.single or chat.tool_choice.mode == pb.ToolChoice.MODE_NAMED
        repeat = "call" if once else 'call ("\\n" call)*'
        return f'start: {repeat}\ncall: {start} "\\n" arguments "\\n" {end}\narguments: %json {schema}\n'

    def _marker(self, text: str) -> str:
        """A marker in Lark: by its id if it is one token, else as text."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(text)


class Constraint:
    """What the next token of one answer may be. Not bound to a thread, but used by one at a time.

    While the model thinks, everything goes; the grammar starts right after the end of thinking. Where
    thinking has not begun but may, its first token is allowed beside those of the grammar.
    """

    def __init__(
        self, matcher: Any, think_begin: Sequence[int], think_end: Sequence[int], thinking: bool
    ) -> None:
        self._matcher = matcher
        self._think_begin = tuple(think_begin)
        self._think_end = tuple(think_end)
        self._begins_thinking = thinking
        self.error: RunnerError | None = None
        self.restart(())

    def restart(self, tokens: Sequence[int]) -> None:
        """Go back to the beginning and take the tokens of an answer that is to be continued."""
        self._matcher.reset()
        self._thinking = self._begins_thinking
        self._seen: list[int] = []
        self._started = False
        for token in tokens:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take a sampled token."""
        if not self._started:
            self._seen.append(token)
            if self._thinking:
                if _ends_with(self._seen, self._think_end):
                    self._thinking, self._started = False, True
                return
            if self._think_begin[: len(self._seen)] == tuple(self._seen):
                self._thinking = len(self._seen) == len(self._think_begin)
                return
        self._started = True
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            self._fail(self._matcher.get_error())

    def mask(self) -> bytes | None:
        """One bit for each token of the vocabulary, little end first, or None while everything is allowed."""
        if self.error is not None or self._thinking:
            return None
        mask = bytearray(self._matcher.compute_bitmask())
        if self._matcher.is_error():
            self._fail(self._matcher.get_error())
            return None
        if not self._started and len(self._seen) < len(self._think_begin):
            token = self._think_begin[len(self._seen)]
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)

    def _fail(self, reason: str) -> None:
        self.error = internal(f"the answer could not be kept to its format: {reason}")


def _ends_with(tokens: Sequence[int], end: Sequence[int]) -> bool:
    return tuple(tokens[-len(end) :]) == tuple(end)


def _grammar(constraint: pb.Constraint) -> str:
    kind = constraint.WhichOneof("grammar")
    matcher = llguidance.LLMatcher
    if kind == "json_object":
        return matcher.grammar_from_json_schema('{"type": "object"}', overrides=_COMPACT)
    if kind == "json_schema":
        try:
            schema = json.loads(constraint.json_schema)
        except ValueError as err:
            raise invalid(f"the JSON Schema of format is not JSON: {err}") from err
        return matcher.grammar_from_json_schema(json.dumps(schema), overrides=_COMPACT)
    if kind == "regex":
        return matcher.grammar_from_regex(constraint.regex)
    if kind == "lark":
        return matcher.grammar_from_lark(constraint.lark)
    raise invalid("the constraint is empty")


def _reason(messages: Sequence[str]) -> str:
    """The first message without the compiler's context."""
    return " ".join(messages[0].split())[:500] if messages else "unknown error"
