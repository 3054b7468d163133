"""What it costs to keep answers to a grammar."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from . import client, models
from .figures import Figure, median_ratio
from .servers import Ollmlx

# Never ends within the tokens that are asked for.
_SCHEMA = {"type": "array", "items": {"type": "string", "minLength": 40}, "minItems": 1000}


def measure(name: str, model: Path, tokens: int, rounds: int) -> Iterator[Figure]:
    with Ollmlx(model) as server:
        client.run([server.generate(p, 8, format=_SCHEMA) for p in models.prompts(1)])
        for count, goal in ((1, 0.95), (8, 0.90)):
            free, kept = [], []
            for _ in range(rounds):
                free.append(_speed(server, count, tokens))
                kept.append(_speed(server, count, tokens, format=_SCHEMA))
            ratio, spread = median_ratio(kept, free)
            yield Figure(
                "tokens/s with a JSON schema / without", f"{name}, batch of {count}", ratio, at_least=goal,
                detail=spread | {"free tok/s": statistics.median(free), "kept tok/s": statistics.median(kept)},
            )  # fmt: skip


def _speed(server: Ollmlx, count: int, tokens: int, **fields: object) -> float:
    """Tokens per second of decoding: from the first token of all streams on."""
    answers = client.run([server.generate(p, tokens, **fields) for p in models.prompts(count)])
    if any(a.tokens != tokens for a in answers):
        raise RuntimeError(f"an answer ended after {min(a.tokens for a in answers)} of {tokens} tokens")
    begin = statistics.median(a.first for a in answers)
    return count * tokens / (max(a.last for a in answers) - begin)
