"""What the prefill of a long prompt does to the streams that decode beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import mlx_lm.utils

from . import client, models
from .figures import Figure, percentile
from .servers import Ollmlx


def measure(
    name: str, model: Path, rounds: int, streams: int = 4, prompt_tokens: int = 4000
) -> Iterator[Figure]:
    tokenizer = mlx_lm.utils.load_tokenizer(model)
    with Ollmlx(model) as server:
        client.run([server.generate(p, 8) for p in models.prompts(1)])
        ratios, quiet, busy, prefill = [], [], [], []
        for _ in range(rounds):
            calm, gaps, seconds = _round(server, tokenizer, streams, prompt_tokens)
            quiet.append(calm)
            busy.append(percentile(gaps, 0.99))
            prefill.append(seconds)
            ratios.append(busy[-1] / calm)
    yield Figure(
        f"p99 gap between tokens of {streams} streams while {prompt_tokens} tokens prefill / quiet p99 gap",
        name, statistics.median(ratios), at_most=3,
        detail={
            "lowest": min(ratios), "highest": max(ratios), "quiet ms": 1000 * statistics.median(quiet),
            "busy ms": 1000 * statistics.median(busy), "prefill s": statistics.median(prefill),
        },
    )  # fmt: skip


def _round(
    server: Ollmlx, tokenizer: object, streams: int, prompt_tokens: int
) -> tuple[float, list[float], float]:
    """The quiet gap, the gaps while the long prompt was prefilled, and how long that took."""
    speed = client.run([server.generate(p, 100) for p in models.prompts(streams)])
    per_token = (max(a.last for a in speed)) / 100
    # Hundreds of quiet gaps: all streams have theirs in the same steps, and the 99th percentile of few is chance.
    begin = 200 * per_token + 0.3
    long = server.generate(models.text(tokenizer, prompt_tokens), 1, after=begin)
    # Long enough to go on after the prompt.
    tokens = int((begin + 30.0) / per_token)
    *others, last = client.run(
        [*(server.generate(p, min(tokens, 3000)) for p in models.prompts(streams)), long]
    )
    end = last.first or last.last
    if min(o.last for o in others) < end:
        end = min(o.last for o in others)
    quiet, busy = [], []
    for answer in others:
        for before, after in zip(answer.times[2:], answer.times[3:], strict=False):
            if after < begin:
                quiet.append(after - before)
            elif before < end and after > begin:
                busy.append(after - before)
    return percentile(quiet, 0.99), busy, end - begin
