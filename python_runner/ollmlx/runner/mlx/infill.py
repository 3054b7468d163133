"""Fill in the middle: the prompt form of tokenizers that have tokens for it.

Which form a tokenizer has is read from its vocabulary; go/internal/mlxmodel derives the "insert" capability from the
same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InfillForm:
    """Markers before the prefix, before the suffix and before the middle, which is what is to be generated."""

    prefix: str
    suffix: str
    # Empty: the middle follows the prefix directly.
    middle: str
    # The suffix comes before the prefix.
    suffix_first: bool = False

    @property
    def markers(self) -> list[str]:
        return [m for m in (self.prefix, self.suffix, self.middle) if m]


_FORMS = (
    # Qwen2.5-Coder, Qwen3-Coder, CodeGemma
    InfillForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    # StarCoder, SantaCoder, Stable Code
    InfillForm("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    # Granite Code
    InfillForm("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    # CodeGeeX
    InfillForm("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    # DeepSeek-Coder
    InfillForm("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # Code Llama
    InfillForm("▁<PRE>", "▁<SUF>", "▁<MID>"),
    # Codestral
    InfillForm("[PREFIX]", "[SUFFIX]", "", suffix_first=True),
)


def find_form(tokenizer: Any) -> InfillForm | None:
    """The form that a tokenizer knows, or None."""
    vocabulary = tokenizer.get_vocab()
    return next((form for form in _FORMS if all(m in vocabulary for m in form.markers)), None)


def encode(tokenizer: Any, form: InfillForm, prefix: str, suffix: str) -> list[int]:
    """Token ids of a prompt whose middle is to be generated, the tokenizer's beginning-of-sequence token included."""

    def part(marker: str, text: str) -> list[int]:
        return [tokenizer.convert_tokens_to_ids(marker), *tokenizer.encode(text, add_special_tokens=False)]

    parts = [part(form.prefix, prefix), part(form.suffix, suffix)]
    if form.suffix_first:
        parts.reverse()
    tokens = [t for p in parts for t in p]
    if form.middle:
        tokens.append(tokenizer.convert_tokens_to_ids(form.middle))
    # What the tokenizer puts before every text.
    beginning = tokenizer.encode("")
    bos = tokenizer.bos_token_id
    return [bos, *tokens] if bos is not None and beginning[:1] == [bos] else tokens
