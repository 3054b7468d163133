"""Forms of fill-in-the-middle prompts, by the markers that models have tokens for.

Which form a model has is read from its vocabulary; go/internal/mlxmodel derives the "insert" capability from the same
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


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


FORMS = (
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
