"""Processors: from text with marks and decoded images to token ids and pixels."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from transformers import AutoProcessor

from ollmlx.runner.mlx.vision.families import FAMILIES

if TYPE_CHECKING:
    from PIL.Image import Image

# What a processor gives besides what it made of the images.
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids")


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
        self, text: str, images: Sequence[Image], add_special_tokens: bool
    ) -> tuple[list[int], dict[str, Any]]:
        """Token ids of `text`, which has a mark for each of `images`, and what the model needs of these: NumPy arrays,
        or lists of them."""
        fields = {} if self._takes_no_fields else {"add_special_tokens": add_special_tokens}
        made = self._processor(text=[text], images=list(images), **fields)
        [tokens] = np.asarray(made["input_ids"]).tolist()
        if self._takes_no_fields and not add_special_tokens:
            added = self._processor.tokenizer("").input_ids
            tokens = tokens[len(added) :] if tokens[: len(added)] == added else tokens
        return tokens, {name: _to_numpy(value) for name, value in made.items() if name not in _OF_TEXT}


def load_processor(path: Path, config: dict[str, Any]) -> Processor:
    """Read the processor of `path`; no code that comes with it is run."""
    model_type = config["model_type"]
    family = FAMILIES[model_type]
    # The family's module tells AutoProcessor about a processor that needs no PyTorch.
    importlib.import_module(f"mlx_vlm.models.{model_type}")
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False, local_files_only=True)
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
