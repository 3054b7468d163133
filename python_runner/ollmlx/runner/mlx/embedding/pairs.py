"""Pairs of a query and a document as token ids, in the form in which a reranker was trained to see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jinja2

from ollmlx.runner.errors import invalid, unsupported
from ollmlx.runner.mlx.embedding.modules import Rerank


@dataclass(frozen=True)
class Pair:
    """Token ids of a query and a document together."""

    tokens: list[int]
    # Where the second segment begins, for encoders that tell them apart; the number of tokens where nothing is told.
    second: int

    def __len__(self) -> int:
        return len(self.tokens)


class PairForm(Protocol):
    """How one model wants to see pairs. Used on the preparer's thread."""

    def encode(self, query: str, document: str, limit: int, truncate: bool) -> Pair:
        """At most `limit` tokens: longer documents are cut, or refused with INVALID_ARGUMENT."""


def make_form(tokenizer: Any, rerank: Rerank, instruction: str) -> PairForm:
    if rerank.logits is None:
        if instruction:
            raise unsupported(
                "this model takes no instruction: it scores a query and a document and nothing else"
            )
        return _Segments(tokenizer)
    return _Template(tokenizer, rerank.template_options, instruction)


class _Segments:
    """Two texts with the tokenizer's own special tokens around and between them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer._tokenizer

    def encode(self, query: str, document: str, limit: int, truncate: bool) -> Pair:
        encoded = self._tokenizer(
            query,
            document,
            truncation="longest_first" if truncate else False,
            max_length=limit if truncate else None,
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,
        )
        tokens, types = encoded["input_ids"], encoded["token_type_ids"]
        if len(tokens) > limit:
            raise _too_long(limit)
        return Pair(tokens, types.index(1) if 1 in types else len(types))


class _Template:
    """A chat template with the roles that sentence-transformers gives: system (an instruction), query, document."""

    def __init__(self, tokenizer: Any, options: dict[str, Any], instruction: str) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._system = [{"role": "system", "content": instruction}] if instruction else []

    def encode(self, query: str, document: str, limit: int, truncate: bool) -> Pair:
        tokens = self._render(query, document)
        if len(tokens) > limit and truncate:
            content = self._tokenizer.encode(document, add_special_tokens=False)
            keep = len(content) - (len(tokens) - limit)
            while len(tokens) > limit and keep > 0:
                tokens = self._render(query, self._tokenizer.decode(content[:keep]))
                # Where a text is cut its tokens may be others than they were.
                keep -= max(len(tokens) - limit, 1)
        if len(tokens) > limit:
            raise _too_long(limit)
        return Pair(tokens, len(tokens))

    def _render(self, query: str, document: str) -> list[int]:
        messages = [
            *self._system,
            {"role": "query", "content": query},
            {"role": "document", "content": document},
        ]
        try:
            text = self._tokenizer._tokenizer.apply_chat_template(messages, tokenize=False, **self._options)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as err:
            raise invalid(f"the model's chat template refuses a query with a document: {err}") from err
        return self._tokenizer.encode(text, add_special_tokens=False)


def _too_long(limit: int) -> Exception:
    return invalid(f"the query and a document together exceed the context length of {limit} tokens")
