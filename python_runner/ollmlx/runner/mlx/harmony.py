"""Answers in OpenAI's harmony format: messages in channels, each with a header.

    <|channel|>analysis<|message|>thinking<|end|><|start|>assistant<|channel|>final<|message|>content<|return|>
    <|channel|>commentary to=functions.name <|constrain|>json<|message|>{"key": 1}<|call|>

The prompt has begun the first header. Headers of messages without a channel, and text where a header should be, are
taken as content: models that were trained further forget the form before they forget the language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ollmlx.runner.mlx.chat_parser import CallBuilder, Piece, warn_unparsed
from ollmlx.runner.mlx.text import MarkerScanner

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADER_MARKERS = (_CHANNEL, "<|constrain|>")
_ALL = (_START, _MESSAGE, *_ENDS, *_HEADER_MARKERS)

_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL_NAME = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")
# A header is a few words; what is longer is none.
_MAX_HEADER = 300


class HarmonyParser:
    """Splits an answer into content, thinking and tool calls; a chat_parser.Parser."""

    def __init__(self, prompt: str, tools: list[dict[str, Any]], stop: Sequence[str]) -> None:
        self._tools = tools
        self._stop = tuple(stop)
        self._calls = CallBuilder((), tools)
        self._scanner = MarkerScanner(_ALL)
        self._body = ""
        # What an answer is prefilled with may have ended its header.
        _, started, last = prompt.rpartition(_START)
        header, begun, _ = last.partition(_MESSAGE)
        self._header = header if started else ""
        self._prefix = len(self._header)
        self._region = "header"
        if begun and not any(end in last for end in _ENDS):
            self._begin_message()

    def feed(self, text: str) -> Piece:
        self._scanner.feed(text)
        piece = Piece()
        while not piece.stop and (found := self._scanner.next()):
            text, marker = found
            if self._region == "header":
                self._header += text
                if marker == _START or marker in _ENDS or not self._may_be_header():
                    self._drop_header(marker or "")
                    continue
            else:
                self._take(piece, text)
            if marker is not None:
                self._cross(piece, marker)
        return piece

    def finish(self) -> Piece:
        piece = Piece()
        if self._region == "header":
            self._header += self._scanner.flush()
            self._drop_header("")
            piece = self.feed("")
            if piece.stop:
                return piece
        self._take(piece, self._scanner.flush())
        if self._region == "call":
            self._end_call(piece, "")
        return piece

    def _take(self, piece: Piece, text: str) -> None:
        if self._region == "call":
            self._body += text
        elif self._region == "thinking":
            piece.thinking += text
        else:
            piece.content += text

    def _cross(self, piece: Piece, marker: str) -> None:
        if marker not in _ALL:
            piece.stop = marker
        elif self._region == "header":
            if marker == _MESSAGE:
                self._begin_message()
            else:
                self._header += marker
        else:
            if self._region == "call":
                self._end_call(piece, marker if marker in _ENDS else "")
            self._enter("content")
            if marker in _ENDS:
                return
            # A header, or what is left of one where the model has forgotten how they begin.
            self._header, self._prefix = marker if marker in _HEADER_MARKERS else "", 0
            self._enter("header")
            if marker == _MESSAGE:
                self._begin_message()

    def _enter(self, region: str) -> None:
        self._region = region
        counts = region in ("content", "thinking")
        self._scanner.markers = (*_ALL, *self._stop) if counts else _ALL

    def _begin_message(self) -> None:
        recipient, channel = _RECIPIENT.search(self._header), _CHANNEL_NAME.search(self._header)
        self._body = ""
        if recipient is not None and self._tools:
            self._name = recipient[1].removeprefix("functions.")
            self._enter("call")
        else:
            self._enter("thinking" if channel is not None and channel[1] == "analysis" else "content")

    def _end_call(self, piece: Piece, marker: str) -> None:
        try:
            arguments = json.loads(self._body) if self._body.strip() else {}
            if not isinstance(arguments, dict):
                raise ValueError("the arguments are not a JSON object")
        except ValueError as err:
            warn_unparsed(err)
            piece.content += f"{self._header[self._prefix :]}{_MESSAGE}{self._body}{marker}"
        else:
            piece.tool_calls.append(self._calls.build({"name": self._name, "arguments": arguments}))
        self._enter("content")

    def _may_be_header(self) -> bool:
        """Whether the header so far, which may go on, is one."""
        text = self._header[self._prefix :].lstrip()
        if len(text) > _MAX_HEADER:
            return False
        role = self._prefix == 0 and "assistant".startswith(text[:9])
        return role or text.startswith(_CHANNEL) or "to=".startswith(text[:3])

    def _drop_header(self, marker: str) -> None:
        """What stands where a header should be is what the model has to say, unless it is only a role."""
        text = self._header[self._prefix :]
        self._header, self._prefix = "", 0
        self._enter("content")
        # Stop strings count in it.
        self._scanner.push_back(("" if text.strip() in ("", "assistant") else text) + marker)
