"""Who computes while others need another adapter: a model wears one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

# Longest turn of those that compute while others wait. Putting an adapter on takes a part of a second.
_TURN_SECONDS = 4.0


class Turns:
    """Rows and embeddings that need different adapters take turns. A turn ends when nothing is left to compute in it,
    or after a while if others wait. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._of_embeddings = False
        # When this turn ends; None while nobody waits.
        self._ends: float | None = None
        # Embeddings have waited while rows were computed.
        self._embeddings_next = False

    def rows_are_over(self, requests_wait: bool, embeddings_wait: bool, may_end: Callable[[], bool]) -> bool:
        """While there are rows: whether they have to make way. A turn goes on until it `may_end`."""
        self._embeddings_next = embeddings_wait
        return self._is_over(False, requests_wait or embeddings_wait, may_end)

    def embeddings_go_first(self) -> bool:
        """While there are no rows, and requests and embeddings wait: whether the requests wait on."""
        if self._embeddings_next and self._is_over(True, True):
            self._embeddings_next = False
        return self._embeddings_next

    def _is_over(
        self, of_embeddings: bool, waited_for: bool, may_end: Callable[[], bool] = lambda: True
    ) -> bool:
        if not waited_for or of_embeddings != self._of_embeddings:
            self._ends = None
        self._of_embeddings = of_embeddings
        if not waited_for:
            return False
        now = time.monotonic()
        if self._ends is None:
            self._ends = now + _TURN_SECONDS
        if now < self._ends or not may_end():
            return False
        self._ends = None
        return True
