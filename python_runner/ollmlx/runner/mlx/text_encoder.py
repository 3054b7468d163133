"""Tokenizing texts that begin like earlier ones, as the prompts of a conversation do.

A tokenizer takes special tokens out of a text before it does anything else, so what stands before one and what begins
with it are tokenized apart from each other. Of a text that begins like an earlier one, all before the last special
token that they share has been tokenized already: nobody waits for that of a long conversation at each of its turns.
"""

from __future__ import annotations

import collections
import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ollmlx.runner.mlx.prefix_trie import as_tokens

# Texts that are remembered, the characters from which on it is worth it, and those of contexts that there are: longer
# texts are mistakes, and would stay in memory.
_KEPT = 8
_LEAST, _MOST = 2000, 5_000_000


@dataclass(frozen=True, eq=False)
class _Known:
    text: str
    tokens: np.ndarray
    # Those of the special tokens in it at which a text may be cut.
    special: dict[int, str]


class TextEncoder:
    """May be used by several threads, as far as the tokenizer may."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        self._added = (
            [added.content for added in tokenizer.added_tokens_decoder.values()] if self._special else []
        )
        # Of the special tokens that were asked for: there may be thousands.
        self._reaches: dict[int, int] = {}
        # The latest last.
        self._known: collections.deque[_Known] = collections.deque(maxlen=_KEPT)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; special ones are those that stand in it, and none are added."""
        if not self._special or not _LEAST <= len(text) <= _MOST:
            return self._encode(text)
        known, end = self._most_alike(text)
        head, begin = self._head(known, end) if known is not None else ([], 0)
        tokens = head + self._encode(text[begin:])
        self._remember(text, tokens, known)
        return tokens

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _most_alike(self, text: str) -> tuple[_Known | None, int]:
        """The known text that begins most like this one, and for how many characters."""
        best, length = None, 0
        for known in list(self._known):
            shared = _shared(known.text, text)
            if shared > length:
                best, length = known, shared
        return best, length

    def _head(self, known: _Known, end: int) -> tuple[list[int], int]:
        """The tokens before the last special one in the first `end` characters, and where it begins."""
        found = (
            (known.text.rfind(special, 0, max(end - self._reach(token) + len(special), 0)), token)
            for token, special in known.special.items()
        )
        begin, token = max(found, default=(-1, 0))
        if begin < 0:
            return [], 0
        special = known.special[token]
        index = np.flatnonzero(known.tokens == token)[-known.text.count(special, begin)]
        return known.tokens[:index].tolist(), begin

    def _reach(self, token: int) -> int:
        """How many characters from its beginning on tell that it is this one, and no part of a longer one, which need
        not be special."""
        if token not in self._reaches:
            special = self._special[token]
            self._reaches[token] = max(len(o) - o.index(special) for o in self._added if special in o)
        return self._reaches[token]

    def _remember(self, text: str, tokens: list[int], begins_like: _Known | None) -> None:
        counts = collections.Counter(t for t in tokens if t in self._special)
        # Text that only looks like a special token, inside of a longer one say, would make a wrong count.
        special = {t: self._special[t] for t, n in counts.items() if text.count(self._special[t]) == n}
        if begins_like is not None and text.startswith(begins_like.text):
            # The next turn of the same conversation.
            with contextlib.suppress(ValueError):
                self._known.remove(begins_like)
        self._known.append(_Known(text, as_tokens(tokens), special))


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Those that a tokenizer takes out of texts as they are, wherever they stand, and gives for nothing else."""
    if not getattr(tokenizer, "is_fast", False):
        return {}
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special
        and added.content
        and not (added.normalized or added.single_word or _overlaps_itself(added.content))
        and token != tokenizer.unk_token_id
    }


def _overlaps_itself(text: str) -> bool:
    """Whether it can be found in two places that share characters."""
    return any(text.startswith(text[i:]) for i in range(1, len(text)))


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike; by comparisons of halves, which are faster than of characters."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
