"""Logging of a runner: one JSON object a line on stderr, which the host turns into log records of its own."""

from __future__ import annotations

import datetime
import faulthandler
import json
import logging
import sys

# Attributes that every LogRecord has; whatever else a record carries was passed as `extra`.
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


def setup(level: str = "info") -> None:
    """Send all logging to stderr as JSON lines; `level` is one of debug, info, warn, error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    logging.captureWarnings(True)
    faulthandler.enable()


class JSONFormatter(logging.Formatter):
    """Formats a record as {"ts", "level", "logger", "msg", "attrs"}; a traceback is in attrs.traceback."""

    def format(self, record: logging.LogRecord) -> str:
        attrs = {k: v for k, v in vars(record).items() if k not in _STANDARD_ATTRIBUTES}
        if record.exc_info:
            attrs["traceback"] = self.formatException(record.exc_info)
        entry = {
            "ts": datetime.datetime.fromtimestamp(record.created, datetime.UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": _level_name(record.levelno),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if attrs:
            entry["attrs"] = attrs
        return json.dumps(entry, default=str)


def _level_name(number: int) -> str:
    for name, level in reversed(_LEVELS.items()):
        if number >= level:
            return name
    return "debug"
