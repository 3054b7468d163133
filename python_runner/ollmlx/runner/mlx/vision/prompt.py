"""Prompts with images: rendered with the model's chat template, tokenized by its processor.

A mark stands for an image in rendered text; the processor replaces each by the tokens of its image, whose number
depends on the image's size and on the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollmlx.runner import images as files
from ollmlx.runner.context import oldest_message
from ollmlx.runner.errors import RunnerError, invalid, unsupported
from ollmlx.runner.mlx import chat as chats
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx.mlxvlm import Processor, Units

# How Ollama's templates refer to an image.
_TAG = re.compile(r"\[img-\d+\]")


@dataclass(frozen=True)
class Images:
    """The images of a prompt as its model takes them, and where they are in its tokens."""

    # Identify the image files, in order.
    digests: tuple[str, ...]
    # What the vision tower computes of them.
    units: Units
    # Where each image's tokens begin; only the first one's where that cannot be told.
    starts: list[int]
    # The token after the last image's.
    end: int

    def cache_keys(self) -> list[tuple[str, int | None]]:
        """Under which keys, besides the adapter's name, caches of this prompt's beginning are kept, longest first, and
        up to which token each of them goes. A key tells all images in a cache, since their tokens do not."""
        keys = [(_key(self.digests[:i]), start) for i, start in enumerate(self.starts)]
        return [(_key(self.digests), None), *reversed(keys)]

    def cache_key(self, tokens: int) -> str:
        """The key of a cache of that many tokens."""
        begun = sum(start < tokens for start in self.starts)
        return _key(self.digests[:begun] if begun < len(self.starts) else self.digests)


def _key(digests: Sequence[str]) -> str:
    return "".join(f" image:{d}" for d in digests)


@dataclass(frozen=True)
class Encoded:
    tokens: list[int]
    rendered: str
    images: Images


class ImageEncoder:
    """Encodes prompts with images for one model; belongs to the preparer's thread."""

    def __init__(self, processor: Processor, tokenizer: Any) -> None:
        self._processor = processor
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    def encode_chat(self, chat: pb.Chat, add_generation_prompt: bool = True) -> Encoded:
        images = [image for message in chat.messages for image in message.images]
        if chat.context:
            raise invalid("a context and images cannot be combined; send earlier turns as messages")
        rendered = self._render(chat, add_generation_prompt, len(images))
        return self._encode(rendered, images, add_special=not self._tokenizer.has_chat_template)

    def encode_prompt(self, prompt: pb.Prompt) -> Encoded:
        """Images take the places of Ollama's tags or of the model's marks; without any they go before the text."""
        if prompt.HasField("suffix"):
            raise unsupported("a suffix and images cannot be combined")
        if prompt.context:
            raise invalid(
                "a context and images cannot be combined; use a chat and send earlier turns as messages"
            )
        mark, framed = self._processor.mark, self._processor.framed_mark
        text = _TAG.sub(lambda _: framed, prompt.text)
        if text.count(mark) == 0:
            text = framed * len(prompt.images) + text
        if text.count(mark) != len(prompt.images):
            raise invalid(
                f"the prompt has {text.count(mark)} places for images ({mark}), but {len(prompt.images)} images came"
            )
        bos = self._tokenizer.bos_token
        return self._encode(text, prompt.images, add_special=not (bos and text.startswith(bos)))

    def drop_oldest(self, chat: pb.Chat) -> None:
        """Drop the oldest messages until no more images are left than a request may have."""
        while sum(len(m.images) for m in chat.messages) > files.MAX_IMAGES:
            oldest = oldest_message(chat)
            if oldest is None:
                return
            del chat.messages[oldest]

    def length_of(self, message: pb.Message, images: Images) -> int:
        """About how many tokens a message takes: its text, and its share of those of all images."""
        text = (
            len(self._tokenizer.encode(message.content, add_special_tokens=False)) if message.content else 0
        )
        return text + len(message.images) * ((images.end - images.starts[0]) // len(images.digests))

    def end_of_turns(self, tokens: list[int], rendered: str, chat: pb.Chat) -> int:
        """Number of tokens before the beginning of the answer, which the next prompt may not repeat; 0 if that cannot
        be told."""
        if chat.continue_final_message:
            return 0
        turns = self._render(chat, False, sum(len(m.images) for m in chat.messages))
        if not rendered.startswith(turns):
            return 0
        opening = self._tokenizer.encode(rendered[len(turns) :], add_special_tokens=False)
        end = len(tokens) - len(opening)
        return end if tokens[end:] == opening else 0

    def _render(self, chat: pb.Chat, add_generation_prompt: bool, count: int) -> str:
        """Templates know images as parts of a message's content, or not at all: then the marks stand in its text."""
        mark = self._processor.mark
        for message in chat.messages:
            if mark in message.content:
                raise invalid(f"a message contains {mark}, which stands for an image in this model's prompts")
        refusal: RunnerError | None = None
        for form in (self._as_parts, self._as_text):
            try:
                rendered = chats.render(self._tokenizer, chat, add_generation_prompt, form)
            except RunnerError as err:
                refusal = refusal or err
                continue
            if rendered.count(mark) == count:
                return rendered
        raise refusal or unsupported(
            "the model's chat template has no place for the images of these messages"
        )

    def _as_parts(self, message: pb.Message) -> str | list[dict[str, str]]:
        if not message.images and chats.takes_text(self._tokenizer):
            return message.content
        parts = [{"type": "image"} for _ in message.images]
        return [*parts, {"type": "text", "text": message.content}]

    def _as_text(self, message: pb.Message) -> str:
        return self._processor.framed_mark * len(message.images) + message.content

    def _encode(self, text: str, images: Sequence[pb.Image], add_special: bool) -> Encoded:
        digests = tuple(files.digest(image) for image in images)
        try:
            tokens, units = self._processor.encode(text, digests, lambda: files.decode(images), add_special)
        except RunnerError:
            raise
        except Exception as err:
            # What a processor cannot take: an image that is a thousand times as wide as it is high, for example.
            raise invalid(f"the model cannot take these images: {' '.join(str(err).split())}") from err
        at = [i for i, token in enumerate(tokens) if token == self._processor.image_token]
        if not at:
            raise unsupported("the model's processor has made no tokens of the images")
        if at[-1] == len(tokens) - 1:
            raise invalid("the prompt ends with an image; add a text after it")
        starts = [i for i in at if i == 0 or tokens[i - 1] != self._processor.image_token]
        if len(starts) != len(images):
            starts = at[:1]
        return Encoded(tokens, text, Images(digests, units, starts, at[-1] + 1))


# Turns a message's content into what a template is given.
Form = Callable[[pb.Message], Any]
