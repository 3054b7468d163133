"""What the engine's thread counts for others to read."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Written on the engine's thread, read by Status on any: single numbers, so that a torn read is not possible."""

    # Requests and embedding jobs that are being computed, and requests that wait.
    running: int = 0
    queued: int = 0
    steps: int = 0
    last_step_ns: int = field(default_factory=time.monotonic_ns)
    kv_cache_bytes: int = 0
