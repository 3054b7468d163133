"""What the engine's thread has to tell the host: one message for each session and step, or for a few quick steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ollmlx.runner.mlx.chat_parser import Piece
from ollmlx.runner.mlx.request import Request
from ollmlx.runner.v1 import runner_pb2 as pb

if TYPE_CHECKING:
    from ollmlx.runner.mlx.engine import EngineSession

# Steps may follow each other faster than this: their events share a message then, and the text of each request a
# delta. What a message costs the runner, the host and the client is what tiny models feel. Up to 125 tokens a
# second each token still arrives by itself, and no screen shows more often.
_INTERVAL_NS = 8_000_000


class Outbox:
    """Events wait here for `flush`, in order for each request."""

    def __init__(self) -> None:
        self._outgoing: dict[EngineSession, pb.StepEvents] = {}
        # Requests with text that is not in an event yet, in order.
        self._unsaid: dict[Request, None] = {}
        # Whether something must go out now, or something at all; what is neither goes with the rest.
        self._urgent = False
        self._due = False
        self._last_flush_ns = 0

    def put(self, session: EngineSession, event: pb.Event, urgent: bool = True) -> None:
        events = self._outgoing.get(session)
        if events is None:
            events = self._outgoing[session] = pb.StepEvents()
        events.events.append(event)
        self._urgent = self._urgent or urgent

    def say(self, request: Request, piece: Piece, urgent: bool = True) -> None:
        """Have text go out with the next flush."""
        if not request.can_say(piece):
            self._put_unsaid(request)
        request.say(piece)
        self._unsaid[request] = None
        self._due = True
        self._urgent = self._urgent or urgent

    def end(self, request: Request, event: pb.Event) -> None:
        """The last event of a request, after its text."""
        self._put_unsaid(request)
        self.put(request.session, event)

    def drop(self, session: EngineSession) -> None:
        """Forget what a session that has ended would have been told."""
        self._outgoing.pop(session, None)
        self._unsaid = {r: None for r in self._unsaid if r.session is not session}

    def flush(self, soon: bool) -> None:
        """Send what has gathered; `soon` says that the next flush follows within a step, so that this one may be left
        to it."""
        now = time.monotonic_ns()
        if soon and not self._urgent and (not self._due or now - self._last_flush_ns < _INTERVAL_NS):
            return
        self._urgent = self._due = False
        self._last_flush_ns = now
        for request in list(self._unsaid):
            self._put_unsaid(request)
        for session, events in self._outgoing.items():
            session.emit(events)
        self._outgoing.clear()

    def _put_unsaid(self, request: Request) -> None:
        if request in self._unsaid:
            del self._unsaid[request]
            self.put(request.session, request.delta(), urgent=False)
