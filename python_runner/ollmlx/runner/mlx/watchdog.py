"""Ends the process when an engine step does not.

A step can hang for ever: a GPU that lost a command, a deadlock in a driver. Requests would wait without end
while the process still answers Status. So a thread looks at the clock, and past the limit it ends the process
with the stacks of all threads in the log: the host sees the death at once, tells the clients why, and starts
another runner.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time

log = logging.getLogger(__name__)

# Longest that one step may take, in seconds; 0: no limit. A step computes at most one chunk of a prompt.
STEP_LIMIT_VARIABLE = "OLLMLX_STEP_TIMEOUT"
_DEFAULT_STEP_LIMIT = 600.0

EXIT_STEP_HANGS = 70


class Watchdog:
    """Use `with watchdog:` around what must end."""

    def __init__(self, limit: float | None = None) -> None:
        self._limit = _limit_from_environment() if limit is None else limit
        self._started: float | None = None

    def start(self) -> None:
        if self._limit > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._started = None

    def _watch(self) -> None:
        interval = min(self._limit / 4, 5.0)
        while True:
            time.sleep(interval)
            started = self._started
            if started is not None and time.monotonic() - started > self._limit:
                log.critical("an engine step has not ended; the runner ends", extra={"seconds": self._limit})
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
                os._exit(EXIT_STEP_HANGS)


def _limit_from_environment() -> float:
    value = os.environ.get(STEP_LIMIT_VARIABLE, "")
    try:
        return float(value) if value else _DEFAULT_STEP_LIMIT
    except ValueError:
        log.warning("ignored: not a number of seconds", extra={STEP_LIMIT_VARIABLE: value})
        return _DEFAULT_STEP_LIMIT
