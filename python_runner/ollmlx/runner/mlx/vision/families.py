"""The families of models that are served with images, and where their prompts say "here is an image".

A family is here when it has been checked against mlx-vlm's own generation (docs/vision.md): that its rows can be
batched, that its processor needs no PyTorch, reads no addresses and runs no code that comes with a model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """How an image stands in the text of a prompt."""

    # Attribute of the processor that holds the mark: the text that it replaces by an image's tokens.
    mark: str = "image_token"
    # What is around the mark where no chat template writes it.
    before: str = ""
    after: str = ""
    # The processor hands what it is told about the text to its image processor, which refuses it.
    takes_no_fields: bool = False


_QWEN = Family(before="<|vision_start|>", after="<|vision_end|>")

# By model_type of config.json.
FAMILIES: dict[str, Family] = {
    "gemma3": Family(mark="boi_token"),
    "gemma4": Family(),
    "idefics3": Family(),
    "llava": Family(after="\n", takes_no_fields=True),
    "lfm2_vl": Family(),
    "mistral3": Family(),
    "pixtral": Family(),
    "qwen2_5_vl": _QWEN,
    "qwen2_vl": _QWEN,
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "smolvlm": Family(),
}
