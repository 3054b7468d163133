"""From a GenerateRequest to the token ids that prefill starts from.

Runs on a thread of its own, beside the engine's: rendering and tokenizing a long history takes milliseconds
that no decoding row should wait for. Nothing here touches MLX arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ollmlx.runner.errors import RunnerError, invalid, unsupported
from ollmlx.runner.mlx import infill
from ollmlx.runner.mlx.chat import ChatParser, PlainParser, render
from ollmlx.runner.mlx.constraint import Constraint, GrammarCompiler
from ollmlx.runner.mlx.prefix_trie import as_tokens, common_prefix
from ollmlx.runner.v1 import runner_pb2 as pb

# An answer without a bound of its own may shift through this many contexts before it is ended.
_UNBOUNDED_CONTEXTS = 10

# Distance of kept boundaries in long prompts, in tokens.
_BOUNDARY_TOKENS = 4096


@dataclass
class PreparedPrompt:
    """A prompt ready to be prefilled, and what its answer is parsed with."""

    tokens: list[int]
    parser: ChatParser | PlainParser
    # Context length of this request, in tokens.
    num_ctx: int
    # Most tokens the answer may have, over all context shifts.
    max_new_tokens: int
    # What the answer must follow, if anything.
    constraint: Constraint | None
    # Numbers of tokens at which the cache is kept during prefill, ascending.
    boundaries: list[int]


class Preparation:
    """Prepares the prompts of one model."""

    def __init__(self, tokenizer: Any, info: pb.ModelInfo, *, keep_boundaries: bool) -> None:
        """`keep_boundaries`: the model's caches cannot be shortened, so that only kept ones can be used again."""
        self._tokenizer = tokenizer
        self._info = info
        self._grammars = GrammarCompiler(tokenizer, info.vocab_size)
        self._keep_boundaries = keep_boundaries

    def prepare(self, request: pb.GenerateRequest) -> PreparedPrompt:
        """Render, tokenize and cut to the context; raises RunnerError for what cannot be honoured."""
        _refuse_unsupported(request)
        num_ctx = min(request.num_ctx or self._info.context_length, self._info.max_context_length)
        if request.WhichOneof("input") == "chat":
            tokens, rendered, chat = _fit_chat(self._tokenizer, request, num_ctx)
            parser: ChatParser | PlainParser = ChatParser(
                self._tokenizer, rendered, chat, request.options.stop
            )
        else:
            rendered, chat = request.prompt.text, None
            tokens = _fit_prompt(encode_prompt(self._tokenizer, request.prompt), request, num_ctx)
            parser = PlainParser(request.options.stop)
        if not tokens:
            raise invalid("the prompt is empty")
        return PreparedPrompt(
            tokens=tokens,
            parser=parser,
            num_ctx=num_ctx,
            max_new_tokens=_max_new_tokens(request, num_ctx, len(tokens)),
            constraint=self._grammars.compile(request, rendered),
            boundaries=self._boundaries(tokens, chat) if self._keep_boundaries else [],
        )

    def _boundaries(self, tokens: list[int], chat: pb.Chat | None) -> list[int]:
        """Where the cache is kept: every few thousand tokens, at the end, and where the next prompt may part from this
        one."""
        boundaries = {*range(_BOUNDARY_TOKENS, len(tokens), _BOUNDARY_TOKENS), len(tokens) - 1}
        if chat is not None and self._tokenizer.has_chat_template:
            boundaries.update(self._turns(tokens, chat))
        return sorted(b for b in boundaries if b > 0)

    def _turns(self, tokens: list[int], chat: pb.Chat) -> Iterator[int]:
        """How many tokens the prompt shares with those of its first messages alone: the system prompt and its tools,
        which other conversations have too; all turns but the last, for one that is asked again in other words; and all
        turns without the beginning of an answer, which the next prompt may not repeat."""
        system = next((i for i, m in enumerate(chat.messages) if m.role != "system"), 0)
        for count in sorted({system, len(chat.messages) - 1, len(chat.messages)} - {0}):
            first = pb.Chat()
            first.CopyFrom(chat)
            del first.messages[count:]
            first.continue_final_message = False
            try:
                turns, _ = encode_chat(self._tokenizer, first, add_generation_prompt=False)
            except RunnerError:
                # Some templates insist on a user's message.
                continue
            yield common_prefix(as_tokens(tokens), as_tokens(turns))


def encode_prompt(tokenizer: Any, prompt: pb.Prompt) -> list[int]:
    """Token ids of a prompt that is already rendered, with one beginning-of-sequence token at most."""
    if prompt.images:
        raise unsupported("this model does not take images")
    if prompt.HasField("suffix"):
        form = infill.find_form(tokenizer)
        if form is None:
            raise unsupported("this model does not support insert: its tokenizer has no tokens for it")
        return [*prompt.context, *infill.encode(tokenizer, form, prompt.text, prompt.suffix)]
    bos = tokenizer.bos_token
    add_special = not prompt.context and not (bos and prompt.text.startswith(bos))
    return [*prompt.context, *tokenizer.encode(prompt.text, add_special_tokens=add_special)]


def encode_chat(tokenizer: Any, chat: pb.Chat, add_generation_prompt: bool = True) -> tuple[list[int], str]:
    """Token ids and text of a rendered chat; the template brings its own special tokens."""
    rendered = render(tokenizer, chat, add_generation_prompt)
    # Without a template nothing else would add the beginning-of-sequence token.
    add_special = not tokenizer.has_chat_template and not chat.context
    return [*chat.context, *tokenizer.encode(rendered, add_special_tokens=add_special)], rendered


def _refuse_unsupported(request: pb.GenerateRequest) -> None:
    if request.top_logprobs > 20:
        raise invalid(f"top_logprobs must be between 0 and 20, got {request.top_logprobs}")


def _fit_chat(tokenizer: Any, request: pb.GenerateRequest, num_ctx: int) -> tuple[list[int], str, pb.Chat]:
    """Drop the oldest messages, but not the system ones and not the last, until the chat leaves room for an
    answer."""
    chat = pb.Chat()
    chat.CopyFrom(request.chat)
    tokens, rendered = encode_chat(tokenizer, chat)
    while len(tokens) >= num_ctx:
        oldest = next((i for i, m in enumerate(chat.messages[:-1]) if m.role != "system"), None)
        if oldest is None or not request.truncate:
            raise _too_long(len(tokens), num_ctx)
        del chat.messages[oldest]
        tokens, rendered = encode_chat(tokenizer, chat)
    return tokens, rendered, chat


def _fit_prompt(tokens: list[int], request: pb.GenerateRequest, num_ctx: int) -> list[int]:
    """Cut the middle out of a prompt that leaves no room, as Ollama does: num_keep tokens of the head
    stay."""
    if len(tokens) < num_ctx:
        return tokens
    if not request.truncate:
        raise _too_long(len(tokens), num_ctx)
    keep = min(max(request.options.num_keep, 0), num_ctx - 1)
    tail = num_ctx - max((num_ctx - keep) // 2, 1) - keep
    return tokens[:keep] + (tokens[-tail:] if tail > 0 else [])


def _too_long(tokens: int, num_ctx: int) -> Exception:
    return invalid(
        f"input length ({tokens} tokens) exceeds the model's maximum context length ({num_ctx} tokens)"
    )


def _max_new_tokens(request: pb.GenerateRequest, num_ctx: int, prompt_tokens: int) -> int:
    options = request.options
    if options.HasField("num_predict") and options.num_predict >= 0:
        return options.num_predict
    return _UNBOUNDED_CONTEXTS * num_ctx if request.shift else num_ctx - prompt_tokens
