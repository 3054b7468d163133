"""What HTTP, the host and gRPC cost over llama.cpp's own server: the same file, the same settings."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from ollmlx.runner.gguf.loading import make_params
from ollmlx.runner.gguf.metadata import read_metadata
from ollmlx.runner.v1 import runner_pb2 as pb

from . import client, models
from .figures import Figure, median_ratio, peak_resident
from .ggufs import OwnServer
from .own_server import settings
from .servers import Ollmlx

_SLOTS, _CONTEXT = 8, 2048


def measure(
    name: str, model: Path, streams: list[int], tokens: int, rounds: int, threads: int
) -> Iterator[Figure]:
    _check_settings(model, threads)
    with _both(model, threads) as (own, server):
        for count in streams:
            yield _compare(name, own, server, count, tokens, rounds)


def measure_memory(name: str, model: Path, tokens: int, rounds: int, threads: int) -> Iterator[Figure]:
    """Peaks of both since their start, after the same work: as many requests at once as there are slots, in rounds."""
    _check_settings(model, threads)
    with _both(model, threads) as (own, server):
        [runner] = server.runner_processes()
        host, alone = psutil.Process(server.process.pid), psutil.Process(own.process.pid)
        told, before = 0, {}
        for _ in range(rounds):
            prompts = [p + " Tell it again." * 8 for p in models.prompts(_SLOTS)]
            for post in (own.completion, server.generate):
                answers = client.run([post(p, tokens) for p in prompts])
            told += sum(a.tokens for a in answers)
            # What is used from the first requests on is not counted.
            before = before or {p: p.memory_info().rss for p in (runner, host, alone)}
        peaks = {p: peak_resident(p) for p in (runner, host, alone)}
        grown = {p: (p.memory_info().rss - before[p]) / 1e6 for p in (runner, host, alone)}
    yield Figure(
        "peak memory of the runner / the library alone",
        name,
        peaks[runner] / peaks[alone],
        at_most=1.02,
        detail={
            "library MB": peaks[alone] / 1e6, "runner MB": peaks[runner] / 1e6,
            "library grew MB": grown[alone], "runner grew MB": grown[runner],
        },
    )  # fmt: skip
    yield Figure(
        "growth of the host from the first round to the last",
        f"{name}, {told} tokens",
        grown[host],
        at_most=2,
        unit=" MB",
        detail={"host MB": peaks[host] / 1e6},
    )


@contextmanager
def _both(model: Path, threads: int) -> Iterator[tuple[OwnServer, Ollmlx]]:
    """Both servers with the model loaded, warm."""
    lines = [f"PARAMETER num_thread {threads}", f"PARAMETER num_ctx {_CONTEXT}"]
    with (
        OwnServer(model, _SLOTS, _CONTEXT, threads, model.with_suffix(".log")) as own,
        Ollmlx(model, *lines, OLLAMA_NUM_PARALLEL=str(_SLOTS)) as server,
    ):
        for post in (own.completion, server.generate):
            client.run([post(p, 8) for p in models.prompts(1)])
        yield own, server


def _check_settings(model: Path, threads: int) -> None:
    """Raises AssertionError where what our engine sets is not what the library alone is given."""
    # The host leaves nothing for prefixes of ended requests where there are so many slots.
    request = pb.LoadRequest(model_path=str(model), num_thread=threads, kv_cache_bytes=1)
    ours = make_params(request, read_metadata(model), model, _CONTEXT, _SLOTS, "f16", gpu=False)
    alone = settings(str(model), _SLOTS, _CONTEXT, threads)
    for part in ("", "model", "cpuparams", "cpuparams_batch"):
        a, b = (getattr(side, part) if part else side for side in (ours, alone))
        for name in (n for n in dir(a) if not n.startswith("_")):
            values = getattr(a, name), getattr(b, name)
            if isinstance(values[0], (int, float, str, set)):
                assert values[0] == values[1], f"{part} {name}: ours is {values[0]}, alone is {values[1]}"


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
