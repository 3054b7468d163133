"""From a GenerateRequest to the token ids that prefill starts from.

Runs on a thread of its own, beside the engine's: rendering and tokenizing a long history takes milliseconds
that no decoding row should wait for. Nothing here touches MLX arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollmlx.runner.context import fit_tokens, oldest_message, too_long
from ollmlx.runner.errors import RunnerError, invalid, unsupported
from ollmlx.runner.mlx import infill
from ollmlx.runner.mlx.chat import make_parser, render
from ollmlx.runner.mlx.chat_format import find_format
from ollmlx.runner.mlx.chat_parser import Parser, PlainParser
from ollmlx.runner.mlx.constraint import Constraint, GrammarCompiler
from ollmlx.runner.mlx.prefix_trie import as_tokens, common_prefix
from ollmlx.runner.mlx.text_encoder import TextEncoder
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx.vision.prompt import ImageEncoder, Images

# An answer without a bound of its own may shift through this many contexts before it is ended.
_UNBOUNDED_CONTEXTS = 10

# Distance of kept boundaries in long prompts, in tokens.
_BOUNDARY_TOKENS = 4096


@dataclass
class PreparedPrompt:
    """A prompt ready to be prefilled, and what its answer is parsed with."""

    tokens: list[int]
    parser: Parser
    # Context length of this request, in tokens.
    num_ctx: int
    # Most tokens the answer may have, over all context shifts.
    max_new_tokens: int
    # What the answer must follow, if anything.
    constraint: Constraint | None
    # Numbers of tokens at which the cache is kept during prefill, ascending.
    boundaries: list[int]
    # The images in the tokens; None without any.
    images: Images | None = None

    def cache_keys(self) -> list[tuple[str, int | None]]:
        """Under which keys, besides the adapter's name, caches of this prompt's beginning are kept, longest first, and
        up to which token each goes (None: all)."""
        return self.images.cache_keys() if self.images is not None else [("", None)]

    def cache_key(self, tokens: int) -> str:
        """The key of a cache of that many tokens."""
        return self.images.cache_key(tokens) if self.images is not None else ""


class Preparation:
    """Prepares the prompts of one model."""

    def __init__(
        self,
        tokenizer: Any,
        info: pb.ModelInfo,
        *,
        keep_boundaries: bool,
        eyes: ImageEncoder | None = None,
        blindness: str = "",
    ) -> None:
        """`keep_boundaries`: the model's caches cannot be shortened, so that only kept ones can be used again.
        `eyes` encodes prompts with images; without it they are refused with `blindness`."""
        self._tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer)
        self._eyes = eyes
        self._blindness = blindness
        self._info = info
        self._format = find_format(tokenizer)
        self._grammars = GrammarCompiler(tokenizer, info.vocab_size, self._format)
        self._keep_boundaries = keep_boundaries

    def prepare(self, request: pb.GenerateRequest) -> PreparedPrompt:
        """Render, tokenize and cut to the context; raises RunnerError for what cannot be honoured."""
        _refuse_unsupported(request)
        num_ctx = min(request.num_ctx or self._info.context_length, self._info.max_context_length)
        images = None
        if request.WhichOneof("input") == "chat":
            tokens, rendered, chat, images = self._fit_chat(request, num_ctx)
            parser: Parser = make_parser(self._format, rendered, chat, request.options.stop)
        else:
            tokens, rendered, images = self.encode_prompt(request.prompt)
            chat = None
            tokens = fit_tokens(tokens, request, num_ctx, whole=images is not None)
            parser = PlainParser(request.options.stop)
        if not tokens:
            raise invalid("the prompt is empty")
        return PreparedPrompt(
            tokens=tokens,
            parser=parser,
            num_ctx=num_ctx,
            max_new_tokens=_max_new_tokens(
                request, num_ctx, len(tokens), shift=request.shift and images is None
            ),
            constraint=self._grammars.compile(request, rendered),
            boundaries=self._boundaries(tokens, rendered, chat, images) if self._keep_boundaries else [],
            images=images,
        )

    def encode_chat(self, chat: pb.Chat) -> tuple[list[int], str, Images | None]:
        """Token ids and text of a rendered chat, and its images."""
        if any(m.images for m in chat.messages):
            encoded = self._open_eyes().encode_chat(chat)
            return encoded.tokens, encoded.rendered, encoded.images
        return *encode_chat(self._encoder, chat), None

    def encode_prompt(self, prompt: pb.Prompt) -> tuple[list[int], str, Images | None]:
        """Token ids and text of a prompt that is already rendered, and its images."""
        if prompt.images:
            encoded = self._open_eyes().encode_prompt(prompt)
            return encoded.tokens, encoded.rendered, encoded.images
        return encode_prompt(self._encoder, prompt), prompt.text, None

    def _open_eyes(self) -> ImageEncoder:
        if self._eyes is None:
            raise unsupported(
                self._blindness or "this model does not support vision: it cannot be shown images"
            )
        return self._eyes

    def _fit_chat(
        self, request: pb.GenerateRequest, num_ctx: int
    ) -> tuple[list[int], str, pb.Chat, Images | None]:
        """Drop the oldest messages, but not the system ones and not the last, until the chat leaves room for an
        answer."""
        chat = pb.Chat()
        chat.CopyFrom(request.chat)
        if request.truncate and self._eyes is not None:
            self._eyes.drop_oldest(chat)
        tokens, rendered, images = self.encode_chat(chat)
        while len(tokens) >= num_ctx:
            excess = len(tokens) - num_ctx + 1
            # One by one, but those with images by estimate: each encoding looks at all images again.
            while excess > 0:
                oldest = oldest_message(chat)
                if oldest is None or not request.truncate:
                    raise too_long(len(tokens), num_ctx)
                excess -= self._eyes.length_of(chat.messages[oldest], images) if images else excess
                del chat.messages[oldest]
            tokens, rendered, images = self.encode_chat(chat)
        return tokens, rendered, chat, images

    def _boundaries(
        self, tokens: list[int], rendered: str, chat: pb.Chat | None, images: Images | None
    ) -> list[int]:
        """Where the cache is kept: every few thousand tokens, at the end, and where the next prompt may part from this
        one."""
        boundaries = {*range(_BOUNDARY_TOKENS, len(tokens), _BOUNDARY_TOKENS), len(tokens) - 1}
        if images is not None:
            # Others may ask about other images, or something else about these.
            boundaries |= {images.starts[0], images.end}
            boundaries.add(self._eyes.end_of_turns(tokens, rendered, chat) if chat is not None else 0)
        elif chat is not None and self._tokenizer.has_chat_template:
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
                turns, _ = encode_chat(self._encoder, first, add_generation_prompt=False)
            except RunnerError:
                # Some templates insist on a user's message.
                continue
            yield common_prefix(as_tokens(tokens), as_tokens(turns))


def has_images(request: pb.GenerateRequest | pb.TokenizeRequest) -> bool:
    return bool(request.prompt.images) or any(m.images for m in request.chat.messages)


def encode_prompt(encoder: TextEncoder, prompt: pb.Prompt) -> list[int]:
    """Token ids of a prompt that is already rendered, with one beginning-of-sequence token at most."""
    tokenizer = encoder.tokenizer
    if prompt.HasField("suffix"):
        form = infill.find_form(tokenizer)
        if form is None:
            raise unsupported("this model does not support insert: its tokenizer has no tokens for it")
        return [*prompt.context, *infill.encode(tokenizer, form, prompt.text, prompt.suffix)]
    bos = tokenizer.bos_token
    if prompt.context or (bos and prompt.text.startswith(bos)):
        return [*prompt.context, *encoder.encode(prompt.text)]
    return tokenizer.encode(prompt.text, add_special_tokens=True)


def encode_chat(
    encoder: TextEncoder, chat: pb.Chat, add_generation_prompt: bool = True
) -> tuple[list[int], str]:
    """Token ids and text of a rendered chat; the template brings its own special tokens."""
    tokenizer = encoder.tokenizer
    rendered = render(tokenizer, chat, add_generation_prompt)
    # Without a template nothing else would add the beginning-of-sequence token.
    if tokenizer.has_chat_template or chat.context:
        return [*chat.context, *encoder.encode(rendered)], rendered
    return tokenizer.encode(rendered, add_special_tokens=True), rendered


def _refuse_unsupported(request: pb.GenerateRequest) -> None:
    if request.top_logprobs > 20:
        raise invalid(f"top_logprobs must be between 0 and 20, got {request.top_logprobs}")


def _max_new_tokens(request: pb.GenerateRequest, num_ctx: int, prompt_tokens: int, *, shift: bool) -> int:
    options = request.options
    if options.HasField("num_predict") and options.num_predict >= 0:
        return options.num_predict
    return _UNBOUNDED_CONTEXTS * num_ctx if shift else num_ctx - prompt_tokens
