"""How long the first request after a rest waits for others.

Prompts that are computed together give their first tokens earlier than one after another. But whoever comes alone must
not wait for nobody, so a request waits for one that is not there yet only if lately others did follow.
"""

from __future__ import annotations

import time

# Longest wait for requests that are likely to come, and for those that have come and are being prepared.
_LONGEST = 0.005
_LONGEST_PREPARING = 0.012
# Among likely ones, the longest rest between two.
_REST = 0.001
# Requests that come within so much time after the first belong to its burst.
_SPAN = 0.006


class Bursts:
    """Watches the beginnings of requests; of the engine's thread."""

    def __init__(self) -> None:
        self._began = 0.0
        self._followed = False
        self._likely = False

    def registered(self) -> None:
        """A request has come."""
        self._followed = self._followed or time.monotonic() - self._began < _SPAN

    def begin(self, several: bool) -> float:
        """The first request after a rest is ready, `several` if it is not the only one; returns when that was."""
        self._likely = self._followed or several
        self._followed = several
        self._began = time.monotonic()
        return self._began

    def patience(self, preparing: bool, began: float) -> float:
        """Seconds to wait for the next thing to happen; not above 0: go on without."""
        waited = time.monotonic() - began
        if preparing:
            return _LONGEST_PREPARING - waited
        return min(_LONGEST - waited, _REST) if self._likely else 0.0
