"""Images on their way to the library.

It would decode files itself, with code in C that has no bounds of ours. So they are decoded here, and it gets pictures
whose bytes we wrote. In a prompt's text a marker stands for each; the library draws it at random, so that no text
contains it by chance or by malice.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.gguf.library import Library
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from PIL import Image

# Stands for a token of an image, which has no number.
NO_TOKEN = 0xFFFFFFFF
# Larger pictures are made smaller first: no model looks at as many pixels.
_MAX_PIXELS = 16 * 1024 * 1024
# Of the longer side to the shorter. Beyond it, what a model's own scaling makes of a picture has no pixels on one side.
_MAX_ASPECT = 100
# A prompt may show an image more than once, but not for ever.
_MAX_SHOWN = 64
# How Ollama's templates refer to an image.
_TAG = re.compile(r"\[img-(\d+)\]")


@dataclass(frozen=True)
class Picture:
    # A data URL.
    url: str
    # Width and height in pixels.
    size: tuple[int, int]

    @property
    def data(self) -> str:
        """Its Base64 data."""
        return self.url.partition(",")[2]

    @property
    def part(self) -> dict[str, Any]:
        """As a part of a message's content."""
        return _part(self.url)


def encode(images: Sequence[pb.Image]) -> list[Picture]:
    """Raises INVALID_ARGUMENT for what is no image, or none that a model can be shown."""
    if not images:
        return []
    # Only where there are images is Pillow imported: that saves memory.
    from ollmlx.runner.images import decode

    return [_encode(picture, i) for i, picture in enumerate(decode(images), 1)]


def _encode(picture: Image.Image, number: int) -> Picture:
    width, height = picture.size
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise invalid(
            f"image {number} has {width} x {height} pixels; one side may be at most {_MAX_ASPECT} times the other"
        )
    if width * height > _MAX_PIXELS:
        share = (_MAX_PIXELS / (width * height)) ** 0.5
        picture = picture.resize((max(int(width * share), 1), max(int(height * share), 1)))
    # The portable pixmap: nothing to compress and nothing to parse.
    pixmap = b"P6 %d %d 255\n" % picture.size + picture.tobytes()
    return Picture(_url("x-portable-pixmap", pixmap), picture.size)


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


# Stands for an image where a chat is only rendered.
NO_PART = _part(_url("x-portable-pixmap", b"P6"))


def place(text: str, pictures: Sequence[Picture], marker: str) -> tuple[str, list[Picture]]:
    """The text with a marker where each image is, and the images in that order. Ollama's tags say where; images without
    one go before the text. A tag of an image that there is not is text."""
    order: list[int] = []

    def mark(tag: re.Match[str]) -> str:
        if (number := int(tag[1])) >= len(pictures):
            return tag[0]
        order.append(number)
        return marker

    text = _TAG.sub(mark, text)
    first = [i for i in range(len(pictures)) if i not in order]
    if len(order) + len(first) > _MAX_SHOWN:
        raise invalid(f"the prompt shows images more than {_MAX_SHOWN} times")
    return marker * len(first) + text, [pictures[i] for i in (*first, *order)]


class Counter:
    """How many tokens images take in prompts of a model, those around them included."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._of_size = functools.lru_cache(4096)(self._measure)

    def __call__(self, picture: Picture) -> int:
        return self._of_size(picture.size)

    def _measure(self, size: tuple[int, int]) -> int:
        """Only the size matters, so a blank one of that size is counted, which is a small file."""
        from PIL import Image

        file = io.BytesIO()
        Image.new("1", size).save(file, "PNG")
        return self._count(_part(_url("png", file.getvalue()))) - self._count()

    def _count(self, *parts: dict[str, Any]) -> int:
        content = [*parts, {"type": "text", "text": "x"}]
        return self._library.count({"messages": [{"role": "user", "content": content}]})


def tokenize(library: Library, text: str, counts: Sequence[int], *, add_special: bool) -> list[int]:
    """Tokens of a text with markers, as the library makes them: the text between images by itself. Raises
    INVALID_ARGUMENT for what it cannot go on from."""
    first, *rest = text.split(library.marker)
    if len(rest) != len(counts):
        raise unsupported("the model's chat template has no place for the images of these messages")
    tokens = library.tokenize(first, add_special=add_special)
    for count, part in zip(counts, rest, strict=True):
        tokens += [NO_TOKEN] * count + library.tokenize(part, add_special=False)
    if tokens[-1:] == [NO_TOKEN]:
        # The library would end the process.
        raise invalid("the prompt ends with an image; let text follow it")
    return tokens


def show(text: str, marker: str) -> str:
    """A rendered text for people: Ollama's tags instead of markers, which nobody is to know."""
    parts = text.split(marker)
    return parts[0] + "".join(f"[img-{i}]{part}" for i, part in enumerate(parts[1:]))
