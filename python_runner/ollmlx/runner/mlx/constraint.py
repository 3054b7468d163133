"""Answers that follow a grammar: JSON, a JSON Schema, a regular expression, or calls of given tools.

llguidance compiles the grammar and says which tokens may come next; the mask is applied with plain MLX
operations, so it works on every device (llguidance's own MLX kernel needs Metal). White space in JSON is a
blank behind a comma or colon at most: with free white space a model may emit blanks until it runs out of tokens.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
import llguidance.hf

from ollmlx.runner.errors import RunnerError, internal, invalid, unsupported
from ollmlx.runner.mlx.chat_format import ChatFormat
from ollmlx.runner.mlx.tool_grammars import call_grammar, final_message
from ollmlx.runner.schemas import SPACED, answer_schema, chosen_functions, json_value
from ollmlx.runner.tools import definition
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)


class GrammarCompiler:
    """Makes the constraints of one model."""

    def __init__(self, tokenizer: Any, vocab_size: int, fmt: ChatFormat) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._format = fmt

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
            grammar = self._answer_grammar(request.constraint, chat)
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
        if chat is None:
            return Constraint(matcher, self._reasoning(request.constraint))
        return Constraint(matcher, self._thinking(chat, prompt))

    def _reasoning(self, constraint: pb.Constraint) -> Thinking:
        """How the answer to a rendered prompt may think, as the host tells it."""
        if not constraint.HasField("reasoning"):
            return Thinking()
        reasoning = constraint.reasoning
        if not reasoning.end:
            raise invalid("the constraint's reasoning has no end")
        begin, end = (tuple(self._encode(text)) if text else () for text in (reasoning.begin, reasoning.end))
        return Thinking(begin, end, not begin, reasoning.end, self._tokenizer.decode, self._encode)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _thinking(self, chat: pb.Chat, prompt: str) -> Thinking:
        fmt = self._format
        if not fmt.thinks:
            return Thinking()
        begun = prompt.rstrip().endswith(fmt.think_start)
        if not begun and chat.HasField("think") and not chat.think.enabled:
            return Thinking()
        begin, end = tuple(fmt.think_start_tokens), tuple(fmt.think_end_tokens)
        if len(end) == 1 or fmt.harmony:
            return Thinking(begin, end, begun)
        return Thinking(begin, end, begun, fmt.think_end, self._tokenizer.decode, self._encode)

    def _answer_grammar(self, constraint: pb.Constraint, chat: pb.Chat | None) -> str:
        """What a constraint says; where the model may call tools, and the form of its calls is known, calls too."""
        grammar = _grammar(constraint)
        schema = answer_schema(constraint)
        answer = None if schema is None else f"start: {json_value(schema)}\n"
        if chat is not None and self._format.harmony:
            grammar = answer = final_message(constraint, self._marker)
        if (
            answer is None
            or chat is None
            or not chat.tools
            or chat.tool_choice.mode != pb.ToolChoice.MODE_AUTO
        ):
            return grammar
        functions = [definition(t).get("function", {}) for t in chat.tools]
        try:
            calls = call_grammar(self._format, functions, chat.tool_choice.single, self._marker)
        except RunnerError:
            return grammar
        answer, calls = answer.removeprefix("start:"), calls.removeprefix("start:")
        return f"start: answer | calls\nanswer:{answer}calls:{calls}"

    def _tool_call_grammar(self, chat: pb.Chat) -> str:
        """One or more calls in the model's own form, after any thinking."""
        tools = chosen_functions([definition(t) for t in chat.tools], chat.tool_choice)
        named = chat.tool_choice.mode == pb.ToolChoice.MODE_NAMED
        return call_grammar(self._format, tools, chat.tool_choice.single or named, self._marker)

    def _marker(self, text: str) -> str:
        """A marker in Lark: by its id if it is one token, else as text."""
        ids = self._encode(text)
        return f"<[{ids[0]}]>" if len(ids) == 1 else json.dumps(text)


@dataclass(frozen=True)
class Thinking:
    """When an answer thinks, which no grammar holds."""

    # Tokens with which it begins and ends; none: there is no thinking.
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    # The prompt has begun it.
    begun: bool = False
    # The end as text, for markers that are no tokens of their own: those of what follows may be mixed with theirs.
    end_text: str = ""
    decode: Callable[[Sequence[int]], str] | None = None
    encode: Callable[[str], Sequence[int]] | None = None

    def ends(self, tokens: Sequence[int]) -> Sequence[int] | None:
        """None while thinking goes on; when it has just ended, the tokens of what the last one holds besides."""
        if _ends_with(tokens, self.end):
            return ()
        if self.decode is None:
            return None
        # Other tokens may spell the end, at most one for each of its bytes.
        tail = self.decode(tokens[-max(2 * len(self.end) + 4, len(self.end_text.encode()) + 1) :])
        _, found, rest = tail.rpartition(self.end_text)
        if not found:
            return None
        # White space at the seam belongs to the marker.
        rest = rest.strip()
        return self.encode(rest) if rest else ()


class Constraint:
    """What the next token of one answer may be. Not bound to a thread, but used by one at a time.

    While the model thinks, everything goes; the grammar starts right after the end of thinking, be it in the
    middle of a token. Where thinking has not begun but may, its first token is allowed beside those of the
    grammar.
    """

    def __init__(self, matcher: Any, thinking: Thinking) -> None:
        self._matcher = matcher
        self._about = thinking
        self.error: RunnerError | None = None
        self.restart(())

    def restart(self, tokens: Sequence[int]) -> None:
        """Go back to the beginning and take the tokens of an answer that is to be continued."""
        self._matcher.reset()
        self._thinking = self._about.begun
        self._seen: list[int] = []
        self._started = False
        # The matcher has taken all of `_seen`: thinking and the grammar may begin with the same tokens.
        self._in_step = True
        for token in tokens:
            self.accept(token)

    def accept(self, token: int) -> None:
        """Take a sampled token."""
        if not self._started:
            self._seen.append(token)
            if self._thinking:
                rest = self._about.ends(self._seen)
                if rest is not None:
                    self._thinking, self._started = False, True
                    for part in rest:
                        self._consume(part)
                return
            if self._about.begin[: len(self._seen)] == tuple(self._seen):
                self._in_step = self._in_step and self._matcher.validate_tokens([token]) == 1
                if self._in_step:
                    self._matcher.consume_token(token)
                if len(self._seen) == len(self._about.begin):
                    self._thinking = True
                    self._matcher.reset()
                return
        self._started = True
        self._consume(token)

    def _consume(self, token: int) -> None:
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
        if not self._started and len(self._seen) < len(self._about.begin):
            if not self._in_step:
                mask = bytearray(len(mask))
            token = self._about.begin[len(self._seen)]
            mask[token // 8] |= 1 << token % 8
        return bytes(mask)

    def _fail(self, reason: str) -> None:
        self.error = internal(f"the answer could not be kept to its format: {reason}")


def _ends_with(tokens: Sequence[int], end: Sequence[int]) -> bool:
    return tuple(tokens[-len(end) :]) == tuple(end)


def _grammar(constraint: pb.Constraint) -> str:
    kind = constraint.WhichOneof("grammar")
    matcher = llguidance.LLMatcher
    schema = answer_schema(constraint)
    if schema is not None:
        return matcher.grammar_from_json_schema(json.dumps(schema), overrides=SPACED)
    if kind == "regex":
        return matcher.grammar_from_regex(constraint.regex)
    if kind == "lark":
        return matcher.grammar_from_lark(constraint.lark)
    raise invalid("the constraint is empty")


def _reason(messages: Sequence[str]) -> str:
    """The first message without the compiler's context."""
    return " ".join(messages[0].split())[:500] if messages else "unknown error"
