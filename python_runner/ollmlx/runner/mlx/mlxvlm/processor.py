"""Processors: from text with marks and decoded images to token ids and pixels."""

from __future__ import annotations

import collections
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import PIL.Image
from transformers import AutoProcessor

from ollmlx.runner.mlx.mlxvlm.units import Units
from ollmlx.runner.mlx.vision.families import FAMILIES

if TYPE_CHECKING:
    from PIL.Image import Image

# What a processor gives besides what it made of the images.
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids")


# What is remembered of the images of earlier prompts, in bytes of pixels.
_MEMORY_BYTES = 256 << 20


class _Memory:
    """An image processor that does not look twice at the same images: those of earlier turns come again with each."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        # By what identifies the images; the least recently used first.
        self._made: collections.OrderedDict[tuple[str, ...], tuple[Any, int]] = collections.OrderedDict()
        # Of the images that come next.
        self.key: tuple[str, ...] = ()

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *arguments: Any, **fields: Any) -> Any:
        made, size = self._made.pop(self.key, (None, 0))
        if made is None:
            made = self._processor(*arguments, **fields)
            size = _nbytes(made)
        if size <= _MEMORY_BYTES:
            self._made[self.key] = (made, size)
            while sum(size for _, size in self._made.values()) > _MEMORY_BYTES:
                self._made.popitem(last=False)
        return _fresh(made)


def _fresh(made: Any) -> Any:
    """Processors take parts out of what they are given."""
    if isinstance(made, tuple):
        return tuple(_fresh(part) for part in made)
    return type(made)(dict(made)) if isinstance(made, Mapping) else made


def _nbytes(made: Any) -> int:
    if isinstance(made, Mapping):
        return sum(_nbytes(value) for value in made.values())
    if isinstance(made, list | tuple):
        return sum(_nbytes(value) for value in made)
    return getattr(made, "nbytes", 0)


@dataclass(frozen=True)
class Processor:
    """The processor of one model. Used on the preparer's thread: it makes arrays, and computes nothing with them."""

    _processor: Any
    # The text that stands for an image, alone and with what belongs around it.
    mark: str
    framed_mark: str
    # The token that an image's mark becomes, many times.
    image_token: int
    _takes_no_fields: bool

    @property
    def tokenizer(self) -> Any:
        """Its own one; no other thread uses it."""
        return self._processor.tokenizer

    @property
    def chat_template(self) -> str | None:
        """The template in the processor's files, where old models keep it."""
        return getattr(self._processor, "chat_template", None)

    def encode(
        self,
        text: str,
        digests: tuple[str, ...],
        images: Callable[[], Sequence[Image]],
        add_special_tokens: bool,
    ) -> tuple[list[int], Units]:
        """Token ids of `text`, which has a mark for each of the images, and what the model needs of these. `digests`
        identify the images; `images` decodes them, if they are not remembered."""
        memory = self._processor.image_processor
        known = False
        # Some processors keep their own image processor whatever they are given.
        if isinstance(memory, _Memory):
            memory.key = digests
            known = digests in memory
        pictures = [PIL.Image.new("RGB", (8, 8)) for _ in digests] if known else images()
        fields = {} if self._takes_no_fields else {"add_special_tokens": add_special_tokens}
        made = self._processor(text=[text], images=list(pictures), **fields)
        [tokens] = np.asarray(made["input_ids"]).tolist()
        if self._takes_no_fields and not add_special_tokens:
            added = self._processor.tokenizer("").input_ids
            tokens = tokens[len(added) :] if tokens[: len(added)] == added else tokens
        inputs = {name: _to_numpy(value) for name, value in made.items() if name not in _OF_TEXT}
        return tokens, Units(inputs, tokens, self.image_token, digests)


def load_processor(path: Path, config: dict[str, Any]) -> Processor:
    """Read the processor of `path`; no code that comes with it is run."""
    model_type = config["model_type"]
    family = FAMILIES[model_type]
    # The family's module tells AutoProcessor about a processor that needs no PyTorch.
    importlib.import_module(f"mlx_vlm.models.{model_type}")
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    processor.image_processor = _Memory(processor.image_processor)
    mark = getattr(processor, family.mark)
    for key in ("image_token_id", "image_token_index"):
        if isinstance(config.get(key), int):
            framed = f"{family.before}{mark}{family.after}"
            return Processor(processor, mark, framed, config[key], family.takes_no_fields)
    raise ValueError("its config.json does not say which token stands for an image")


def _to_numpy(value: Any) -> Any:
    if isinstance(value, mx.array):
        return np.array(value)
    if isinstance(value, list):
        return [_to_numpy(v) for v in value]
    return value
