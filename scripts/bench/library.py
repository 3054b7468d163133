"""What HTTP, the host and gRPC cost over llama.cpp's own server: the same file, the same settings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import psutil

from . import client, models
from .figures import Figure, median_ratio
from .ggufs import OwnServer
from .servers import Ollmlx

_SLOTS, _CONTEXT = 8, 2048


def measure(
    name: str, model: Path, streams: list[int], tokens: int, rounds: int, threads: int
) -> Iterator[Figure]:
    log = model.with_suffix(".log")
    lines = [f"PARAMETER num_thread {threads}", f"PARAMETER num_ctx {_CONTEXT}"]
    with (
        OwnServer(model, _SLOTS, _CONTEXT, threads, log) as own,
        Ollmlx(model, *lines, OLLAMA_NUM_PARALLEL=str(_SLOTS)) as server,
    ):
        client.run([server.generate(p, 8) for p in models.prompts(1)])
        client.run([own.completion(p, 8) for p in models.prompts(1)])
        [runner] = server.runner_processes()
        before = runner.memory_info().rss, psutil.Process(own.process.pid).memory_info().rss
        for count in streams:
            yield _compare(name, own, server, count, tokens, rounds)
        after = runner.memory_info().rss, psutil.Process(own.process.pid).memory_info().rss
        detail = {
            "library MB": after[1] / 1e6, "runner MB": after[0] / 1e6,
            "library grew MB": (after[1] - before[1]) / 1e6, "runner grew MB": (after[0] - before[0]) / 1e6,
        }  # fmt: skip
        yield Figure(
            "memory of the runner / the library alone", name, after[0] / after[1], at_most=1.02, detail=detail
        )


def _compare(name: str, own: OwnServer, server: Ollmlx, count: int, tokens: int, rounds: int) -> Figure:
    ours, theirs = [], []
    for round_ in range(rounds):
        sides = [(own.completion, theirs), (server.generate, ours)]
        for make, speeds in sides if round_ % 2 else reversed(sides):
            answers = client.run([make(p, tokens) for p in models.prompts(count)])
            speeds.append(sum(a.tokens for a in answers) / max(a.last for a in answers))
    ratio, spread = median_ratio(ours, theirs)
    detail = {"library tok/s": statistics.median(theirs), "ollmlx tok/s": statistics.median(ours)}
    case = f"{name}, {count} stream{'s' * (count > 1)}"
    return Figure(
        "tokens/s of a GGUF model / llama.cpp's own server",
        case,
        ratio,
        at_least=0.97,
        detail=spread | detail,
    )
