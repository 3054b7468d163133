"""What HTTP, the host, gRPC and the runner cost over the bare engine."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from . import client, models
from .bare import Bare
from .figures import Figure, median_ratio
from .servers import Ollmlx

THROUGHPUT = "tokens/s over HTTP / bare BatchGenerator"
FIRST_TOKEN = "time to first token over HTTP - bare"


def measure(name: str, model: Path, streams: list[int], tokens: int, rounds: int) -> Iterator[Figure]:
    bare = Bare(model)
    with Ollmlx(model) as server:
        bare.run(models.prompts(1), 8)
        client.run([server.generate(p, 8) for p in models.prompts(1)])
        for count in streams:
            yield from _compare(name, bare, server, count, tokens, rounds)


def _compare(name: str, bare: Bare, server: Ollmlx, count: int, tokens: int, rounds: int) -> Iterator[Figure]:
    bare_speed, http_speed, delays = [], [], []
    bare_first, http_first = [], []
    for _ in range(rounds):
        run = bare.run(models.prompts(count), tokens)
        answers = client.run([server.generate(p, tokens) for p in models.prompts(count)])
        produced = sum(a.tokens for a in answers)
        if produced != tokens * count:
            raise RuntimeError(f"the server generated {produced} tokens instead of {tokens * count}")
        bare_speed.append(run.tokens_per_second)
        http_speed.append(produced / max(a.last for a in answers))
        bare_first.append(statistics.median(run.first))
        http_first.append(statistics.median(a.first for a in answers))
        delays.append(1000 * (http_first[-1] - bare_first[-1]))
    case = f"{name}, {count} stream{'s' * (count > 1)}"
    ratio, spread = median_ratio(http_speed, bare_speed)
    speeds = {"bare tok/s": statistics.median(bare_speed), "HTTP tok/s": statistics.median(http_speed)}
    yield Figure(THROUGHPUT, case, ratio, at_least=0.97, detail=spread | speeds)
    times = {
        "bare ms": 1000 * statistics.median(bare_first), "HTTP ms": 1000 * statistics.median(http_first),
    }  # fmt: skip
    yield Figure(
        FIRST_TOKEN, case, statistics.median(delays), at_most=3, unit=" ms",
        detail={"lowest": min(delays), "highest": max(delays)} | times,
    )  # fmt: skip
