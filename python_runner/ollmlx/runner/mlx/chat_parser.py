"""Generated text back to content, thinking and tool calls, as it comes.

Whatever pieces a text arrives in, the parts add up to the same. What a model said is never lost: a tool call that
cannot be parsed comes out as content, markers included, and is logged.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ollmlx.runner.mlx.chat_format import ChatFormat
from ollmlx.runner.mlx.text import MarkerScanner
from ollmlx.runner.mlx.tool_calls import SEPARATORS, normalize
from ollmlx.runner.mlx.tool_schemas import expanded
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

# What an object that is a call begins with.
_FIRST_KEYS = ("name", "type", "function", "parameters", "arguments", "id")


@dataclass
class Piece:
    """What a piece of generated text turned out to be."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[pb.ToolCall] = field(default_factory=list)
    # The stop string that ends the answer, if one was met.
    stop: str | None = None

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.tool_calls or self.stop)

    def add(self, other: Piece) -> None:
        self.content += other.content
        self.thinking += other.thinking
        self.tool_calls += other.tool_calls
        self.stop = self.stop or other.stop


class Parser(Protocol):
    """Takes an answer's text in pieces."""

    def feed(self, text: str) -> Piece:
        """What is certain now. Nothing may be fed after a stop string was met."""

    def finish(self) -> Piece:
        """What was held back, when no more text will come."""


class PlainParser:
    """Takes text as it is, up to a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._scanner = MarkerScanner(stop)

    def feed(self, text: str) -> Piece:
        self._scanner.feed(text)
        piece = Piece()
        while not piece.stop and (found := self._scanner.next()):
            piece.content += found[0]
            piece.stop = found[1]
        return piece

    def finish(self) -> Piece:
        return Piece(content=self._scanner.flush())


class CallBuilder:
    """Makes tool calls of their text, and counts them."""

    def __init__(self, parsers: Sequence[Callable[..., Any]], tools: list[dict[str, Any]]) -> None:
        self._parsers = parsers
        self._tools = [expanded(tool) for tool in tools]
        # Calls so far.
        self.count = 0

    def parse(self, text: str) -> list[pb.ToolCall]:
        """The calls in `text`; raises what the first of the parsers raises if none of them can read it."""
        first: Exception | None = None
        for parser in self._parsers:
            try:
                parsed = parser(text, self._tools)
                calls = [normalize(c) for c in (parsed if isinstance(parsed, list) else [parsed])]
            except Exception as err:
                # The parsers raise whatever their format makes them raise.
                first = first or err
                continue
            return [self.build(c) for c in calls]
        raise first or ValueError("there is no parser")

    def build(self, call: dict[str, Any]) -> pb.ToolCall:
        self.count += 1
        return pb.ToolCall(
            id=call.get("id", ""),
            name=call["name"],
            arguments_json=_to_json(call["arguments"]),
            index=self.count - 1,
        )

    def knows(self, name: str) -> bool:
        return any(tool.get("function", {}).get("name") == name for tool in self._tools)


def _to_json(arguments: dict[str, Any]) -> str:
    """JSON has no infinity, though 1e999 is JSON, for which the largest number stands; nor has it what is no number."""
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(arguments), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else max(min(value, sys.float_info.max), -sys.float_info.max)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def warn_unparsed(err: Exception) -> None:
    log.warning("a tool call could not be parsed and is passed on as content", extra={"error": str(err)})


class ChatParser:
    """Splits an answer at the markers of its model's format.

    Stop strings count in content and thinking, not inside a tool call.
    """

    def __init__(
        self, fmt: ChatFormat, prompt: str, tools: list[dict[str, Any]], stop: Sequence[str]
    ) -> None:
        """`tools`: the definitions that may be called; none, and a call is text."""
        self._format = fmt
        self._stop = tuple(stop)
        self._calls = CallBuilder(fmt.parsers, tools)
        self._call_start = fmt.call_start if tools else None
        self._call_text = ""
        self._scanner = MarkerScanner(())
        # Templates that always think open the tag in the prompt itself.
        opened = fmt.think_start is not None and prompt.rstrip().endswith(fmt.think_start)
        if tools and fmt.bare_calls and not opened:
            self._enter("bare")
        else:
            self._enter("thinking" if opened else "content", skip_space=opened)

    def feed(self, text: str) -> Piece:
        self._scanner.feed(text)
        piece = Piece()
        while not piece.stop and (found := self._scanner.next()):
            self._take(piece, found[0])
            if found[1] is not None:
                self._cross(piece, found[1])
        return piece

    def finish(self) -> Piece:
        """What was held back; a call without its end marker is parsed if it is complete all the same."""
        piece = Piece()
        if self._region == "bare":
            self._leave_bare(self._call_text)
            piece = self.feed("")
            if piece.stop:
                return piece
        self._take(piece, self._scanner.flush())
        if self._region == "tool":
            self._end_call(piece, closed=False)
        return piece

    def _enter(self, region: str, skip_space: bool = False) -> None:
        self._region = region
        self._skip_space = skip_space
        self._held_space = ""
        fmt = self._format
        markers = {
            "content": (fmt.think_start, self._call_start, *fmt.dropped, *self._stop),
            "thinking": (fmt.think_end, self._call_start, *self._stop),
            "tool": (fmt.call_end,),
            "bare": (),
        }[region]
        self._scanner.markers = tuple(m for m in markers if m)

    def _take(self, piece: Piece, text: str) -> None:
        if self._region == "tool":
            self._call_text += text
            return
        if self._region == "bare":
            self._call_text += text
            self._look_for_bare_call(piece)
            return
        if self._skip_space:
            text = text.lstrip()
            self._skip_space = not text
        if self._region == "thinking":
            # Space before the end marker belongs to the format, not to the thought.
            text = self._held_space + text
            thought = text.rstrip()
            self._held_space = text[len(thought) :]
            piece.thinking += thought
        else:
            piece.content += text

    def _cross(self, piece: Piece, marker: str) -> None:
        fmt = self._format
        if self._region == "tool":
            self._end_call(piece, closed=True)
        elif marker == self._call_start:
            self._call_text = ""
            self._enter("tool")
        elif marker == fmt.think_start and self._region == "content":
            self._enter("thinking", skip_space=True)
        elif marker == fmt.think_end and self._region == "thinking":
            self._enter("content", skip_space=True)
        elif marker not in fmt.dropped:
            piece.stop = marker

    def _end_call(self, piece: Piece, closed: bool) -> None:
        try:
            if not closed and self._format.closed_calls:
                raise ValueError("it breaks off")
            piece.tool_calls += self._calls.parse(self._call_text)
        except Exception as err:
            warn_unparsed(err)
            end = self._format.call_end if closed else ""
            piece.content += f"{self._call_start}{self._call_text}{end}"
        self._call_text = ""
        self._enter("content", skip_space=True)

    def _look_for_bare_call(self, piece: Piece) -> None:
        """Whether what an answer begins with is a call: decided as soon as it can be, by the beginning alone."""
        while True:
            text = self._call_text.lstrip(SEPARATORS if self._calls.count else None)
            if not text:
                return
            if not _may_be_call(text):
                self._leave_bare(self._call_text)
                return
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return
            try:
                call = normalize(value)
            except ValueError:
                call = None
            if call is None or not self._calls.knows(call["name"]):
                self._leave_bare(self._call_text)
                return
            piece.tool_calls.append(self._calls.build(call))
            self._call_text = text[end:]

    def _leave_bare(self, text: str) -> None:
        """What looked like a call is text like any other."""
        self._call_text = ""
        self._enter("content", skip_space=self._calls.count > 0)
        self._scanner.push_back(text)


def _may_be_call(text: str) -> bool:
    """Whether `text`, which may go on, can be an object that begins as calls do."""
    if not text.startswith("{"):
        return False
    rest = text[1:].lstrip()
    if not rest:
        return True
    if not rest.startswith('"'):
        return False
    key, closed, _ = rest[1:].partition('"')
    return key in _FIRST_KEYS if closed else any(k.startswith(key) for k in _FIRST_KEYS)
