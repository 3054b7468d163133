"""One request on its way through the engine, and the events that tell of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.chat_parser import Piece
from ollmlx.runner.mlx.prompt import PreparedPrompt
from ollmlx.runner.mlx.text import Detokenizer
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx.engine import EngineSession


@dataclass(eq=False)
class Request:
    """State of one request; owned by the engine's thread from registration to its last event."""

    id: int
    session: EngineSession
    proto: pb.GenerateRequest
    submitted_ns: int = field(default_factory=time.monotonic_ns)

    # Set when the prompt has been prepared.
    prompt: PreparedPrompt | None = None
    detokenizer: Detokenizer | None = None

    # Set while in the batch. After a context shift the row is a new one, `tokens` is what it holds.
    uid: int | None = None
    tokens: list[int] = field(default_factory=list)
    # Every token sampled so far, but for the one that ended the answer.
    output: list[int] = field(default_factory=list)
    generated: int = 0
    # It was in a batch that failed, and has not given a token by itself since.
    on_trial: bool = False
    # May be read on any thread: whatever is still done for it is done in vain.
    ended: bool = False
    # Tokens of the prompt whose cache was found.
    cached: int = 0
    prefill_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0

    # Tokens and log probabilities whose text is held back.
    _pending_tokens: int = 0
    _pending_logprobs: list[pb.TokenLogprob] = field(default_factory=list)

    # What the next delta holds.
    _unsaid: Piece = field(default_factory=Piece)
    _unsaid_tokens: int = 0
    _unsaid_logprobs: list[pb.TokenLogprob] = field(default_factory=list)

    def drop_half(self) -> None:
        """Drop the older half of the context after num_keep tokens."""
        keep = min(max(self.proto.options.num_keep, 0), len(self.tokens) - 1)
        drop = max((len(self.tokens) - keep) // 2, 1)
        self.tokens = self.tokens[:keep] + self.tokens[keep + drop :]

    def add_token(self, token: int, logprob: pb.TokenLogprob | None) -> Piece:
        """Take a sampled token; returns what became certain of the text."""
        self.tokens.append(token)
        self.output.append(token)
        self._pending_tokens += 1
        if logprob is not None:
            self._pending_logprobs.append(logprob)
        text = self.detokenizer.add(token)
        return self.prompt.parser.feed(text) if text else Piece()

    def has_its_only_call(self, piece: Piece) -> bool:
        """Whether the answer ends here because it may have one tool call and has it."""
        return bool(piece.tool_calls) and self.proto.chat.tool_choice.single

    def finish_text(self) -> Piece:
        """The text that was held back, when no more tokens will come."""
        piece = self.prompt.parser.feed(self.detokenizer.flush())
        if piece.stop:
            return piece
        piece.add(self.prompt.parser.finish())
        return piece

    def can_say(self, piece: Piece) -> bool:
        """Whether `piece` may go into one delta with what is unsaid: within a delta thinking comes first, then content,
        then tool calls."""
        unsaid = self._unsaid
        if piece.thinking and (unsaid.content or unsaid.tool_calls):
            return False
        return not (piece.content and unsaid.tool_calls)

    def say(self, piece: Piece) -> None:
        """Have `piece`, with the tokens and log probabilities up to it, go out with the next delta."""
        self._unsaid.content += piece.content
        self._unsaid.thinking += piece.thinking
        self._unsaid.tool_calls += piece.tool_calls
        self._unsaid_tokens += self._pending_tokens
        self._unsaid_logprobs += self._pending_logprobs
        self._pending_tokens = 0
        self._pending_logprobs = []

    def delta(self) -> pb.Event:
        """What was said and is not sent yet."""
        event = pb.Event(
            request_id=self.id,
            delta=pb.Delta(
                content=self._unsaid.content,
                thinking=self._unsaid.thinking,
                tool_calls=self._unsaid.tool_calls,
                tokens=self._unsaid_tokens,
                logprobs=self._unsaid_logprobs,
            ),
        )
        self._unsaid, self._unsaid_tokens, self._unsaid_logprobs = Piece(), 0, []
        return event

    @property
    def has_pending(self) -> bool:
        return self._pending_tokens > 0

    def prefill_event(self, done: int, total: int) -> pb.Event:
        prefill = pb.Prefill(tokens_done=done, tokens_total=total, tokens_cached=self.cached)
        return pb.Event(request_id=self.id, prefill=prefill)

    def finished(self, reason: pb.Finished.Reason, stop_sequence: str = "") -> pb.Event:
        first = self.first_token_ns or time.monotonic_ns()
        return pb.Event(
            request_id=self.id,
            finished=pb.Finished(
                reason=reason,
                stop_sequence=stop_sequence,
                usage=pb.Usage(
                    prompt_tokens=len(self.prompt.tokens),
                    cached_prompt_tokens=self.cached,
                    completion_tokens=self.generated,
                    queue_ns=self.prefill_ns - self.submitted_ns,
                    prefill_ns=first - self.prefill_ns,
                    decode_ns=max(self.last_token_ns - first, 0),
                ),
                context=self.tokens if self.proto.return_context else (),
            ),
        )

    def failed(self, error: RunnerError) -> pb.Event:
        return failed_event(self.id, error)


def failed_event(request_id: int, error: RunnerError) -> pb.Event:
    return pb.Event(request_id=request_id, failed=pb.Failed(code=error.number, message=error.message))
