"""Fill in the middle: which form of prompt a model's vocabulary has tokens for."""

from __future__ import annotations

from ollmlx.runner.gguf.library import Library
from ollmlx.runner.infill import FORMS, InfillForm


def find_form(library: Library) -> InfillForm | None:
    """The form all of whose markers are single tokens, or None."""
    known: dict[str, bool] = {}
    for form in FORMS:
        for marker in form.markers:
            if marker not in known:
                known[marker] = len(library.tokenize(marker, add_special=False)) == 1
        if all(known[m] for m in form.markers):
            return form
    return None


def render(form: InfillForm, prefix: str, suffix: str) -> str:
    """The prompt whose middle is to be generated."""
    parts = [form.prefix + prefix, form.suffix + suffix]
    if form.suffix_first:
        parts.reverse()
    return "".join(parts) + form.middle
