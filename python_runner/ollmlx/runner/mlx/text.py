"""From token ids to text: incremental decoding, and routing of text by markers with hold-back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a decoder puts for bytes that are not UTF-8: at the end of a text, mostly a character that is not
# complete yet.
_REPLACEMENT = "\ufffd"

# Tokens that decoding may wait for the rest of a character. A character has four bytes at most; more than
# that many tokens mean bytes that never become text.
_MAX_HELD_TOKENS = 16

# Tokens of the prompt that decoding starts from, so that a leading space of the first new token is kept.
_CONTEXT_TOKENS = 6


class Detokenizer:
    """Decodes a growing sequence of token ids piece by piece; the pieces add up to the text of the whole.

    Tokens cannot be decoded one by one: a character may be spread over several, and decoders treat the first
    token of a text differently. So a window of recent tokens is decoded before and after each new token, and
    the difference is the new text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._fresh = len(self._window)
        self._known = decode(self._window)
        if self._known.endswith(_REPLACEMENT):
            # The window cut a character of the prompt in two: it is no context to decode in.
            self._window, self._fresh, self._known = [], 0, ""

    def add(self, token: int) -> str:
        """Take one token; returns the text that is certain now, possibly none."""
        self._window.append(token)
        text = self._decode(self._window)
        held = len(self._window) - self._fresh
        if text.endswith(_REPLACEMENT) and held < _MAX_HELD_TOKENS:
            return ""
        return self._accept(text)

    def flush(self) -> str:
        """The rest, complete or not."""
        return self._accept(self._decode(self._window))

    def _accept(self, text: str) -> str:
        new = text[len(self._known) :]
        self._window = self._window[self._fresh :] or self._window
        self._fresh = len(self._window)
        self._known = self._decode(self._window)
        return new


class MarkerScanner:
    """Finds markers in text that arrives in pieces.

    Text that may be the beginning of a marker is held back until it is known to be one or not. The markers
    may be changed between any two calls, which is how a marker opens a region with markers of its own.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        self._held = ""
        self.markers = tuple(m for m in markers if m)

    def feed(self, text: str) -> None:
        self._held += text

    def push_back(self, text: str) -> None:
        """Put text before what is held, to be looked at again."""
        self._held = text + self._held

    def next(self) -> tuple[str, str | None] | None:
        """The text up to the next marker and that marker; (text, None) for text without one; None when
        nothing is certain."""
        found = [(at, -len(m), m) for m in self.markers if (at := self._held.find(m)) >= 0]
        if found:
            at, _, marker = min(found)
            text, self._held = self._held[:at], self._held[at + len(marker) :]
            return text, marker
        keep = self._partial_marker()
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return (text, None) if text else None

    def flush(self) -> str:
        """What is still held back, when no more text will come."""
        text, self._held = self._held, ""
        return text

    def _partial_marker(self) -> int:
        """Length of the longest end of the held text that begins a marker."""
        longest = max((len(m) for m in self.markers), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(m.startswith(tail) for m in self.markers):
                return length
        return 0
