"""From a GenerateRequest to the body of a call of the library."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ollmlx.runner import options as checked
from ollmlx.runner.context import fit_tokens, oldest_message, too_long
from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.gguf import constraint, infill, media
from ollmlx.runner.gguf.loading import LoadedModel
from ollmlx.runner.tools import definition
from ollmlx.runner.v1 import runner_pb2 as pb

# An answer without a bound of its own may shift through this many contexts before it is ended.
_UNBOUNDED_CONTEXTS = 10
# What is told of an answer at its end.
_FINAL_FIELDS = ("stop_type", "stopping_word", "tokens_evaluated", "tokens_predicted", "timings")
# A rendered prompt has at most this many bytes beside those of its messages and tools.
_TEMPLATE_BYTES = 2048
# The library's last seed means a random one.
_SEEDS = 0xFFFFFFFF
# Tokens that no byte of the text stands for: the beginning of the sequence, and room for one of the answer.
_SPARE_TOKENS = 8


@dataclass
class Call:
    """A call of the library."""

    body: dict[str, Any]
    # Parsed by the library: thinking and tool calls come split off.
    is_chat: bool
    # Context length in tokens, prompt and answer together.
    num_ctx: int
    # The answer is nothing but tool calls, as constraint.tool_calls has them.
    is_tool_calls: bool = False
    # The prompt, where it is needed to tell the tokens of prompt and answer together.
    prompt: str | list[int | str] | None = None


def make_call(request: pb.GenerateRequest, model: LoadedModel) -> Call:
    """Raises RunnerError for what cannot be honoured."""
    num_ctx = min(request.num_ctx or model.info.context_length, model.info.context_length)
    _check(request, model)
    body = _sampling(request, num_ctx)
    if request.WhichOneof("input") == "chat":
        call = _chat(request, model, body, num_ctx)
    else:
        text = request.prompt.text
        if request.prompt.HasField("suffix"):
            if request.prompt.images:
                raise unsupported("a suffix and images cannot be combined")
            if model.infill is None:
                raise unsupported("this model does not support insert: its vocabulary has no tokens for it")
            text = infill.render(model.infill, text, request.prompt.suffix)
        pictures = media.encode(request.prompt.images)
        if pictures:
            text, pictures = media.place(text, pictures, model.library.marker)
        call = _prompt(request, model, body, num_ctx, [*request.prompt.context], text, pictures)
    if not call.is_chat and request.HasField("constraint") and not call.is_tool_calls:
        body["grammar"] = constraint.grammar(request.constraint)
    return call


def chat_body(chat: pb.Chat, pictures: Sequence[media.Picture] | None = None) -> dict[str, Any]:
    """The part of a body that the chat template sees. `pictures` are all images of its messages, in order; without them
    it can be rendered, but not computed."""
    if not chat.messages:
        raise invalid("a chat needs at least one message")
    parts = itertools.repeat(media.NO_PART) if pictures is None else (p.part for p in pictures)
    body: dict[str, Any] = {"messages": [_message(m, parts) for m in chat.messages]}
    mode = chat.tool_choice.mode
    tools = [definition(t) for t in chat.tools] if mode != pb.ToolChoice.MODE_NONE else []
    if tools:
        body["tools"] = tools
        body["parallel_tool_calls"] = not chat.tool_choice.single
    if chat.continue_final_message:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if chat.HasField("think"):
        body["chat_template_kwargs"] = {"enable_thinking": chat.think.enabled}
        if chat.think.level:
            body["chat_template_kwargs"]["reasoning_effort"] = chat.think.level
    return body


def images_of(chat: pb.Chat) -> list[pb.Image]:
    return [image for message in chat.messages for image in message.images]


def plain_text(chat: pb.Chat, marker: str = "") -> str:
    """The prompt of a model without a chat template: the text itself, after the message's images."""
    texts = (marker * len(m.images) + m.content for m in chat.messages)
    return "\n\n".join(text for text in texts if text)


def _chat(request: pb.GenerateRequest, model: LoadedModel, body: dict[str, Any], num_ctx: int) -> Call:
    chat = pb.Chat()
    chat.CopyFrom(request.chat)
    pictures = media.encode(images_of(chat))
    marker = model.library.marker if pictures else ""
    if not model.metadata.chat_template:
        return _prompt(request, model, body, num_ctx, [*chat.context], plain_text(chat, marker), pictures)
    _fit_chat(chat, request, model, num_ctx, pictures)
    own = chat_body(chat, pictures)
    if chat.context:
        # What precedes the rendered messages is known in tokens only, and the library parses only what it renders.
        return _prompt(request, model, body, num_ctx, [*chat.context], model.library.render(own), pictures)
    if chat.tool_choice.mode in (pb.ToolChoice.MODE_REQUIRED, pb.ToolChoice.MODE_NAMED):
        return _tool_calls(request, chat, model, body, num_ctx, pictures)
    body |= own
    if request.HasField("constraint"):
        body |= constraint.for_chat(
            request.constraint, thinks=_may_think(chat, model), reasoning=lambda: _reasoning(model, own)
        )
    prompt = model.library.render(own) if request.return_context and not pictures else None
    return Call(body, is_chat=True, num_ctx=num_ctx, prompt=prompt)


def _tool_calls(
    request: pb.GenerateRequest,
    chat: pb.Chat,
    model: LoadedModel,
    body: dict[str, Any],
    num_ctx: int,
    pictures: list[media.Picture],
) -> Call:
    """An answer that has to be calls. The library's own grammar for that lets a model write text for ever before it
    calls, so the grammar is one of ours, and there is no thinking before it."""
    chat.think.enabled = False
    own = chat_body(chat)
    markers = ("<tool_call>", "</tool_call>") if "<tool_call>" in model.metadata.chat_template else None
    body["grammar"] = constraint.tool_calls(own.get("tools", []), chat.tool_choice, markers)
    call = _prompt(request, model, body, num_ctx, [], model.library.render(own), pictures)
    call.is_tool_calls = True
    return call


def _prompt(
    request: pb.GenerateRequest,
    model: LoadedModel,
    body: dict[str, Any],
    num_ctx: int,
    context: list[int],
    text: str,
    pictures: list[media.Picture],
) -> Call:
    if pictures:
        body["prompt"] = _text_and_images(model, num_ctx, context, text, pictures)
        return Call(body, is_chat=False, num_ctx=num_ctx)
    prompt: str | list[int | str] = [*context, text] if context else text
    if len(context) + len(text.encode()) + _SPARE_TOKENS > num_ctx:
        tokens = model.library.tokenize(prompt, add_special=not context)
        fitting = fit_tokens(tokens, request, num_ctx)
        if len(fitting) < len(tokens):
            prompt = [*fitting]
    if not prompt:
        raise invalid("the prompt is empty")
    body["prompt"] = prompt
    return Call(body, is_chat=False, num_ctx=num_ctx, prompt=prompt)


def _text_and_images(
    model: LoadedModel, num_ctx: int, context: list[int], text: str, pictures: list[media.Picture]
) -> dict[str, Any]:
    """The library takes images with text only, and a text with images is not cut: nobody could tell which part of an
    image is left."""
    if context:
        raise invalid(
            "a context and images cannot be combined; use a chat and send earlier turns as messages"
        )
    counts = [model.image_tokens(p) for p in pictures]
    tokens = len(media.tokenize(model.library, text, counts, add_special=True))
    if tokens >= num_ctx:
        raise too_long(tokens, num_ctx)
    return {"prompt_string": text, "multimodal_data": [p.data for p in pictures]}


def _fit_chat(
    chat: pb.Chat,
    request: pb.GenerateRequest,
    model: LoadedModel,
    num_ctx: int,
    pictures: list[media.Picture],
) -> None:
    """Drop the oldest messages with their pictures, but not the system ones and not the last, until the chat leaves
    room for an answer."""
    if not pictures and chat.ByteSize() + _TEMPLATE_BYTES <= num_ctx:
        return
    counts = [model.image_tokens(p) for p in pictures]
    while True:
        text = model.library.render(chat_body(chat))
        tokens = len(media.tokenize(model.library, text, counts, add_special=False))
        if len(chat.context) + tokens < num_ctx:
            return
        oldest = oldest_message(chat)
        if oldest is None or not request.truncate:
            raise too_long(tokens, num_ctx)
        before = sum(len(m.images) for m in chat.messages[:oldest])
        gone = slice(before, before + len(chat.messages[oldest].images))
        del pictures[gone], counts[gone], chat.messages[oldest]


def check_images(request: pb.GenerateRequest | pb.TokenizeRequest, model: LoadedModel) -> None:
    shown = bool(request.prompt.images) or any(m.images for m in request.chat.messages)
    if shown and "vision" not in model.info.capabilities:
        raise unsupported(f'"{model.name}" does not support vision: it has no projector for images')


def _check(request: pb.GenerateRequest, model: LoadedModel) -> None:
    check_images(request, model)
    if request.top_logprobs > 20:
        raise invalid(f"top_logprobs must be between 0 and 20, got {request.top_logprobs}")
    if (
        request.num_ctx > model.info.context_length
        and model.info.context_length < model.info.max_context_length
    ):
        raise invalid(
            f"num_ctx {request.num_ctx} is more than the {model.info.context_length} tokens "
            "that the model was loaded with"
        )
    if request.HasField("adapter") and request.adapter.name not in model.adapters:
        raise unsupported(
            f"adapter {request.adapter.name!r} was not loaded with the model: "
            "llama.cpp takes adapters only when it loads"
        )
    checked.check_bias(request.options, model.info.vocab_size)


def _may_think(chat: pb.Chat, model: LoadedModel) -> bool:
    return "thinking" in model.info.capabilities and not (chat.HasField("think") and not chat.think.enabled)


def _reasoning(model: LoadedModel, own: dict[str, Any]) -> pb.Reasoning:
    """How the answer to a chat may think, by the template and by what it makes of this chat."""
    begin, end = "<think>", "</think>"
    if begin not in model.metadata.chat_template or end not in model.metadata.chat_template:
        raise unsupported(
            f'"{model.name}" marks its thinking in a way that a regex or a lark grammar cannot follow; '
            "set think to false"
        )
    opened = model.library.render(own).rstrip().endswith(begin)
    return pb.Reasoning(begin="" if opened else begin, end=end)


def _sampling(request: pb.GenerateRequest, num_ctx: int) -> dict[str, Any]:
    """Everything is set: the library's own defaults are not ours."""
    o = request.options

    last_n = checked.repeat_last_n(o)
    limit = o.num_predict if o.HasField("num_predict") else -1
    if limit < 0:
        limit = _UNBOUNDED_CONTEXTS * num_ctx if request.shift else num_ctx
    body = {
        "stream": True,
        # Progress is also what a cancellation is noticed at while the prompt is computed.
        "return_progress": True,
        "verbose": True,
        "response_fields": _FINAL_FIELDS,
        "sse_ping_interval": -1,
        "cache_prompt": True,
        # The library would compute one token for none.
        "n_predict": max(limit, 1),
        "n_keep": max(o.num_keep, 0),
        "temperature": checked.temperature(o),
        "top_k": max(o.top_k, 0),
        "top_p": checked.share(o, "top_p", 1.0),
        "min_p": checked.share(o, "min_p", 0.0),
        "typical_p": checked.share(o, "typical_p", 1.0),
        "repeat_last_n": num_ctx if last_n < 0 else last_n,
        "repeat_penalty": checked.repeat_penalty(o),
        "presence_penalty": checked.finite(o, "presence_penalty", 0.0),
        "frequency_penalty": checked.finite(o, "frequency_penalty", 0.0),
        "seed": o.seed % _SEEDS if o.HasField("seed") and o.seed >= 0 else random.getrandbits(31),
        "n_probs": max(request.top_logprobs, 1) if request.logprobs else 0,
    }
    if o.stop:
        body["stop"] = [*o.stop]
    if o.logit_bias:
        body["logit_bias"] = [[t, b] for t, b in o.logit_bias.items()]
    return body


def _message(message: pb.Message, images: Iterator[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        # Before the text, as in Ollama.
        out["content"] = [next(images) for _ in message.images]
        if message.content:
            out["content"].append({"type": "text", "text": message.content})
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
    arguments = call.arguments_json or "{}"
    try:
        json.loads(arguments)
    except ValueError as err:
        raise invalid(f"the arguments of an earlier call of tool {call.name!r} are not JSON: {err}") from err
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
