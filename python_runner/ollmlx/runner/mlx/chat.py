"""Chat in the tokenizer's own format: messages to prompt text, and what takes the answer apart.

Who renders, parses: only answers to prompts that were rendered here are parsed here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.mlx.chat_format import ChatFormat
from ollmlx.runner.mlx.chat_parser import ChatParser, Parser
from ollmlx.runner.mlx.harmony import HarmonyParser
from ollmlx.runner.tools import definition
from ollmlx.runner.v1 import runner_pb2 as pb

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
        options["tools"] = [definition(t) for t in chat.tools]
    if chat.HasField("think"):
        options["enable_thinking"] = chat.think.enabled
        if chat.think.level:
            options["reasoning_effort"] = chat.think.level
    messages = [_message(m, content(m)) for m in chat.messages]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except (jinja2.TemplateError, ValueError, TypeError, KeyError) as err:
        raise invalid(f"the model's chat template refuses these messages: {err}") from err


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
        if not (message.tool_calls and message.content):
            # The name of the harmony format, whose template takes one of both before a call.
            out["thinking"] = message.thinking
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


def make_parser(fmt: ChatFormat, prompt: str, chat: pb.Chat, stop: Sequence[str]) -> Parser:
    """What takes the answer to a rendered chat apart."""
    tools = [] if chat.tool_choice.mode == pb.ToolChoice.MODE_NONE else [definition(t) for t in chat.tools]
    if fmt.harmony:
        return HarmonyParser(prompt, tools, stop)
    return ChatParser(fmt, prompt, tools, stop)
