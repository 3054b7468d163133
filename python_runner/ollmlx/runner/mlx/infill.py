"""Fill in the middle: the prompt form of tokenizers that have tokens for it."""

from __future__ import annotations

from typing import Any

from ollmlx.runner.infill import FORMS, InfillForm


def find_form(tokenizer: Any) -> InfillForm | None:
    """The form that a tokenizer knows, or None."""
    vocabulary = tokenizer.get_vocab()
    return next((form for form in FORMS if all(m in vocabulary for m in form.markers)), None)


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
