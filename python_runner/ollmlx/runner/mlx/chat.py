"""Chat in the tokenizer's own format: messages to prompt text, and generated text back to content, thinking
and tool calls.

Who renders, parses: only answers to prompts that were rendered here are parsed here.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.mlx.text import MarkerScanner
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

# What no template contains by itself.
_PROBE = "Zq7Wm"
# What became of it, by template.
_text_takers: dict[str, bool] = {}


def render(
    tokenizer: Any,
    chat: pb.Chat,
    add_generation_prompt: bool = True,
    content: Callable[[pb.Message], Any] | None = None,
) -> str:
    """The prompt text of a chat, after the tokenizer's template; raises INVALID_ARGUMENT with the template's
    own complaint. `content` makes of a message what the template is given as its content."""
    if not chat.messages:
        raise invalid("a chat needs at least one message")
    if content is None:
        if any(m.images for m in chat.messages):
            raise unsupported("this model does not support vision: it cannot be shown images")
        content = functools.partial(_content, tokenizer)
    mode = chat.tool_choice.mode
    if not tokenizer.has_chat_template:
        # A base model: its prompt is the text itself.
        return "\n\n".join(text for m in chat.messages if isinstance(text := content(m), str) and text)

    options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
    if chat.continue_final_message:
        options = {"continue_final_message": True}
    if chat.tools and mode != pb.ToolChoice.MODE_NONE:
        options["tools"] = [_tool(t) for t in chat.tools]
    if chat.HasField("think"):
        options["enable_thinking"] = chat.think.enabled
        if chat.think.level:
            options["reasoning_effort"] = chat.think.level
    messages = [_message(m, content(m)) for m in chat.messages]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (jinja2.TemplateError, ValueError, TypeError, KeyError) as err:
        raise invalid(f"the model's chat template refuses these messages: {err}") from err


def _tool(tool: pb.Tool) -> dict[str, Any]:
    try:
        definition = json.loads(tool.json)
    except ValueError as err:
        raise invalid(f"a tool definition is not JSON: {err}") from err
    if not isinstance(definition, dict):
        raise invalid("a tool definition must be a JSON object")
    return definition


def takes_text(tokenizer: Any) -> bool:
    """Whether the chat template takes the content of a message as a string. Some of models that see take only a list of
    parts, and make nothing of a string."""
    template = str(getattr(tokenizer, "chat_template", None))
    if template not in _text_takers:
        _text_takers[template] = _probe(tokenizer)
    return _text_takers[template]


def _probe(tokenizer: Any) -> bool:
    for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
        try:
            rendered = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        except Exception:
            continue
        if _PROBE in rendered:
            return isinstance(content, str)
    return True


def _content(tokenizer: Any, message: pb.Message) -> Any:
    if not tokenizer.has_chat_template or takes_text(tokenizer):
        return message.content
    return [{"type": "text", "text": message.content}]


def _message(message: pb.Message, content: Any) -> dict[str, Any]:
    """A message in the form that Hugging Face templates expect; absent things are absent keys."""
    out: dict[str, Any] = {"role": message.role, "content": content}
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_calls:
        out["tool_calls"] = [_tool_call(c) for c in message.tool_calls]
    if message.tool_call_id:
        out["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        out["name"] = message.tool_name
    return out


def _tool_call(call: pb.ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments_json or "{}")
    except ValueError as err:
        raise invalid(f"the arguments of an earlier call of tool {call.name!r} are not JSON: {err}") from err
    out = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    if call.id:
        out["id"] = call.id
    return out


@dataclass
class Piece:
    """What a piece of generated text turned out to be."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[pb.ToolCall] = field(default_factory=list)
    # The stop string that ends the answer, if one was met.
    stop: str | None = None

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.tool_calls or self.stop)


class PlainParser:
    """Takes text as it is, up to a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._scanner = MarkerScanner(stop)

    def feed(self, text: str) -> Piece:
        self._scanner.feed(text)
        piece = Piece()
        while not piece.stop and (found := self._scanner.next()):
            piece.content += found[0]
            piece.stop = found[1]
        return piece

    def finish(self) -> Piece:
        return Piece(content=self._scanner.flush())


class ChatParser:
    """Splits an answer into content, thinking and tool calls by the markers that mlx-lm inferred from the
    tokenizer.

    Stop strings count in content and thinking, not inside a tool call. A tool call that cannot be parsed
    comes out as content, markers included, and is logged: what a model said is never lost.
    """

    def __init__(self, tokenizer: Any, prompt: str, chat: pb.Chat, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._think_start = tokenizer.think_start if tokenizer.has_thinking else None
        self._think_end = tokenizer.think_end if tokenizer.has_thinking else None
        wants_tools = bool(chat.tools) and chat.tool_choice.mode != pb.ToolChoice.MODE_NONE
        self._tool_start = tokenizer.tool_call_start if wants_tools and tokenizer.has_tool_calling else None
        self._tool_end = tokenizer.tool_call_end
        self._tool_parser = tokenizer.tool_parser
        self._tools = [_tool(t) for t in chat.tools]
        self._calls = 0
        self._call_text = ""
        self._scanner = MarkerScanner(())
        # Templates that always think open the tag in the prompt itself.
        opened = self._think_start is not None and prompt.rstrip().endswith(self._think_start)
        self._enter("thinking" if opened else "content", skip_space=opened)

    def feed(self, text: str) -> Piece:
        self._scanner.feed(text)
        piece = Piece()
        while not piece.stop and (found := self._scanner.next()):
            self._take(piece, found[0])
            if found[1] is not None:
                self._cross(piece, found[1])
        return piece

    def finish(self) -> Piece:
        """What was held back; a call without its end marker is parsed if it is complete all the same."""
        piece = Piece()
        self._take(piece, self._scanner.flush())
        if self._region == "tool":
            self._end_call(piece, closed=False)
        return piece

    def _enter(self, region: str, skip_space: bool = False) -> None:
        self._region = region
        self._skip_space = skip_space
        self._held_space = ""
        markers = {
            "content": (self._think_start, self._tool_start, *self._stop),
            "thinking": (self._think_end, self._tool_start, *self._stop),
            "tool": (self._tool_end,),
        }[region]
        self._scanner.markers = tuple(m for m in markers if m)

    def _take(self, piece: Piece, text: str) -> None:
        if self._region == "tool":
            self._call_text += text
            return
        if self._skip_space:
            text = text.lstrip()
            self._skip_space = not text
        if self._region == "thinking":
            # Space before the end marker belongs to the format, not to the thought.
            text = self._held_space + text
            thought = text.rstrip()
            self._held_space = text[len(thought) :]
            piece.thinking += thought
        else:
            piece.content += text

    def _cross(self, piece: Piece, marker: str) -> None:
        if self._region == "tool":
            self._end_call(piece, closed=True)
        elif marker == self._tool_start:
            self._call_text = ""
            self._enter("tool")
        elif marker == self._think_start and self._region == "content":
            self._enter("thinking", skip_space=True)
        elif marker == self._think_end and self._region == "thinking":
            self._enter("content", skip_space=True)
        else:
            piece.stop = marker

    def _end_call(self, piece: Piece, closed: bool) -> None:
        try:
            parsed = self._tool_parser(self._call_text, self._tools)
            calls = [self._call(c) for c in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception as err:
            # The parsers raise whatever their format makes them raise.
            log.warning(
                "a tool call could not be parsed and is passed on as content", extra={"error": str(err)}
            )
            piece.content += f"{self._tool_start}{self._call_text}{self._tool_end if closed else ''}"
        else:
            piece.tool_calls += calls
            self._calls += len(calls)
        self._call_text = ""
        self._enter("content", skip_space=True)

    def _call(self, parsed: dict[str, Any]) -> pb.ToolCall:
        arguments = parsed.get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not isinstance(json.loads(arguments), dict):
            raise ValueError("the arguments are not a JSON object")
        return pb.ToolCall(name=str(parsed["name"]), arguments_json=arguments, index=self._calls)
