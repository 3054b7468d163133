"""One request on its way through the engine: it runs on a thread of its own while the library computes it,
and tells its events as the library tells its pieces."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ollmlx.runner.errors import RunnerError, cancelled, internal
from ollmlx.runner.gguf.body import make_call
from ollmlx.runner.gguf.library import failure
from ollmlx.runner.gguf.loading import LoadedModel
from ollmlx.runner.v1 import runner_pb2 as pb

log = logging.getLogger(__name__)

_NANOSECONDS_PER_MS = 1e6


class Generation:
    """State of one request. `run` is called once, or `fail` when it never runs; `cancel` at any time."""

    def __init__(
        self, request_id: int, request: pb.GenerateRequest, emit: Callable[[pb.Event], None]
    ) -> None:
        self.id = request_id
        self.proto = request
        self._emit = emit
        self._submitted_ns = time.monotonic_ns()
        self._error: RunnerError | None = None
        self._ended = False
        self._end_lock = threading.Lock()
        self._call: Any = None
        # Of the prompt, as told so far.
        self._prompt_tokens = 0
        self._cached = 0
        # Tokens sampled as told so far, and those that a delta has carried.
        self._sampled = 0
        self._carried = 0
        self._text = ""
        # Whether there was thinking, and the space behind it that is held back.
        self._thought, self._space = False, ""
        self._tool: dict[str, Any] | None = None
        self._tools_done = 0
        self._final: dict[str, Any] = {}
        # Why the answer was ended here and not by the library.
        self._cut: pb.Finished.Reason | None = None

    def cancel(self, error: RunnerError | None = None) -> None:
        """End the request at its next piece."""
        self._error = error or cancelled()

    def fail(self, error: RunnerError) -> None:
        self._end(failed=pb.Failed(code=error.number, message=error.message))

    def run(self, model: LoadedModel) -> None:
        """Compute the answer; returns when the last event has been emitted."""
        started_ns = time.monotonic_ns()
        try:
            if self._error is None:
                self._call = make_call(self.proto, model)
                if self._call.is_chat:
                    self._call.body["timings_per_token"] = True
                    model.library.chat(self._call.body, self._on_chat)
                else:
                    model.library.complete(self._call.body, self._on_text)
            if self._error is not None:
                raise self._error
            self._finish_tool()
            if self._call.is_tool_calls:
                self._finish_tool_calls()
            self._finish(model, started_ns - self._submitted_ns)
        except RunnerError as err:
            self.fail(err)
        except Exception as err:
            log.exception("a request failed", extra={"trace_id": self.proto.trace_id})
            self.fail(internal(f"internal error in the gguf engine: {err}"))

    def _on_text(self, piece: dict[str, Any]) -> bool:
        if self._is_over(piece):
            return True
        choice = piece["choices"][0]
        verbose = piece.get("__verbose", {})
        self._sampled = verbose.get("tokens_predicted", self._sampled)
        text = choice.get("text") or ""
        if self._call.is_tool_calls:
            self._text += text
            return self._is_full()
        if choice.get("finish_reason") is None and "prompt_progress" not in piece:
            self._delta(content=text, logprobs=_logprobs(choice, self.proto.top_logprobs))
        return self._is_full()

    def _on_chat(self, piece: dict[str, Any]) -> bool:
        if self._is_over(piece):
            return True
        if not piece["choices"] or piece["choices"][0].get("finish_reason") is not None:
            return False
        choice = piece["choices"][0]
        delta = choice["delta"]
        self._sampled = int(piece.get("timings", {}).get("predicted_n", self._sampled))
        logprobs = _logprobs(choice, self.proto.top_logprobs)
        content = delta.get("content") or ""
        thinking = self._trim_thinking(delta.get("reasoning_content") or "")
        if content or thinking or logprobs:
            self._delta(content=content, thinking=thinking, logprobs=logprobs)
        for call in delta.get("tool_calls") or ():
            self._take_tool(call)
        if self._tools_done and self.proto.chat.tool_choice.single:
            self._cut = pb.Finished.REASON_STOP
            return True
        return self._is_full()

    def _trim_thinking(self, text: str) -> str:
        """Thinking without the space around it: what ends a piece is held until more comes."""
        if not text:
            return ""
        text = (self._space + text) if self._thought else text.lstrip()
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._thought = self._thought or bool(kept)
        return kept

    def _is_over(self, piece: dict[str, Any]) -> bool:
        """Take what every piece may have; true if nothing more is wanted."""
        if self._error is not None:
            return True
        if "error" in piece:
            self._error = failure(piece["error"])
            return True
        if progress := piece.get("prompt_progress"):
            self._prompt_tokens, self._cached = progress["total"], progress["cache"]
            self._emit(
                pb.Event(
                    request_id=self.id,
                    prefill=pb.Prefill(
                        tokens_done=progress["processed"],
                        tokens_total=self._prompt_tokens,
                        tokens_cached=self._cached,
                    ),
                )
            )
        elif self.proto.options.HasField("num_predict") and self.proto.options.num_predict == 0:
            self._cut = pb.Finished.REASON_LENGTH
            return True
        verbose = piece.get("__verbose", {})
        if "stop_type" in verbose:
            self._final = {**verbose, "timings": piece.get("timings") or verbose.get("timings", {})}
        elif "timings" in piece and self._final:
            self._final["timings"] = piece["timings"]
        return False

    def _is_full(self) -> bool:
        """Whether the answer has reached the end of a context that must not be shifted."""
        if self.proto.shift or self._prompt_tokens + self._sampled < self._call.num_ctx:
            return False
        self._cut = pb.Finished.REASON_LENGTH
        return True

    def _take_tool(self, part: dict[str, Any]) -> None:
        """Join the parts of a call; it is told when it is complete, which the next one or the end shows."""
        function = part.get("function", {})
        if self._tool is None or part["index"] != self._tool["index"]:
            self._finish_tool()
            self._tool = {"index": part["index"], "name": "", "arguments": ""}
        self._tool["name"] += function.get("name") or ""
        self._tool["arguments"] += function.get("arguments") or ""

    def _finish_tool(self) -> None:
        if self._tool is None:
            return
        tool, self._tool = self._tool, None
        try:
            complete = isinstance(json.loads(tool["arguments"] or "{}"), dict)
        except ValueError:
            complete = False
        if not complete:
            # What a model said is never lost.
            log.info(
                "a tool call is incomplete", extra={"trace_id": self.proto.trace_id, "tool": tool["name"]}
            )
            self._delta(content=f"{tool['name']}{tool['arguments']}")
            return
        call = pb.ToolCall(
            name=tool["name"], arguments_json=tool["arguments"] or "{}", index=self._tools_done
        )
        self._tools_done += 1
        self._delta(tool_calls=[call])

    def _finish_tool_calls(self) -> None:
        """Take the calls out of an answer that is nothing but calls."""
        text, self._text = self._text, ""
        decoder, at = json.JSONDecoder(), 0
        while (at := text.find("{", at)) >= 0:
            try:
                call, at = decoder.raw_decode(text, at)
            except ValueError:
                # Cut off: the answer reached its bound.
                self._delta(content=text[at:])
                return
            self._tool = {
                "index": 0,
                "name": call["name"],
                "arguments": json.dumps(call["arguments"], ensure_ascii=False),
            }
            self._finish_tool()

    def _delta(self, **parts: Any) -> None:
        self._text += parts.get("content", "")
        fresh, self._carried = max(self._sampled - self._carried, 0), max(self._sampled, self._carried)
        if parts.get("content") or parts.get("thinking") or parts.get("tool_calls") or parts.get("logprobs"):
            self._emit(pb.Event(request_id=self.id, delta=pb.Delta(tokens=fresh, **parts)))
        else:
            self._carried -= fresh

    def _finish(self, model: LoadedModel, queue_ns: int) -> None:
        timings = self._final.get("timings", {})
        stop = self._final.get("stopping_word", "")
        reason, own_stop = pb.Finished.REASON_STOP, ""
        if self._cut is not None:
            reason = self._cut
        elif self._final.get("stop_type") == "limit":
            reason = pb.Finished.REASON_LENGTH
        elif self._final.get("stop_type") == "word" and stop in self.proto.options.stop:
            reason, own_stop = pb.Finished.REASON_STOP_SEQUENCE, stop
        usage = pb.Usage(
            prompt_tokens=self._final.get("tokens_evaluated", self._prompt_tokens),
            cached_prompt_tokens=int(timings.get("cache_n", self._cached)),
            completion_tokens=self._final.get("tokens_predicted", self._sampled),
            queue_ns=queue_ns,
            prefill_ns=int(timings.get("prompt_ms", 0) * _NANOSECONDS_PER_MS),
            decode_ns=int(timings.get("predicted_ms", 0) * _NANOSECONDS_PER_MS),
        )
        if (rest := usage.completion_tokens - self._carried) > 0:
            # Tokens that made no text.
            self._emit(pb.Event(request_id=self.id, delta=pb.Delta(tokens=rest)))
        context: list[int] = []
        if self.proto.return_context and self._call.prompt:
            # Not of a prompt with images, which are no tokens.
            context = model.library.tokenize(self._call.prompt, add_special=not self._call.is_chat)
            context += model.library.tokenize(self._text, add_special=False)
        self._end(finished=pb.Finished(reason=reason, stop_sequence=own_stop, usage=usage, context=context))

    def _end(self, **kind: Any) -> None:
        """Emit the last event; only the first call counts."""
        with self._end_lock:
            if self._ended:
                return
            self._ended = True
        self._emit(pb.Event(request_id=self.id, **kind))


def _logprobs(choice: dict[str, Any], top: int) -> list[pb.TokenLogprob]:
    entries = (choice.get("logprobs") or {}).get("content") or ()
    return [_logprob(entry, top) for entry in entries]


def _logprob(entry: dict[str, Any], top: int) -> pb.TokenLogprob:
    data = bytes(entry["bytes"])
    out = pb.TokenLogprob(id=entry["id"], text=entry["token"], logprob=entry["logprob"])
    if data != entry["token"].encode():
        out.bytes = data
    for alternative in entry.get("top_logprobs", ())[:top]:
        out.top.append(_logprob(alternative, 0))
    return out
