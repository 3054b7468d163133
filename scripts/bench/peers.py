"""Other servers of MLX models, in the same run: mlx_lm.server and vllm-mlx with continuous batching."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path

from . import client, models
from .figures import Figure, median_ratio
from .servers import Ollmlx, mlx_lm_server, vllm_mlx

PEERS = {"mlx_lm.server": mlx_lm_server, "vllm-mlx": vllm_mlx}


def measure(
    name: str, model: Path, venv: Path, logs: Path, streams: list[int], tokens: int, rounds: int
) -> Iterator[Figure]:
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        # The others complete the prompt as it is; ours would put it into the model's own chat template, as Ollama does.
        servers = {"ollmlx": stack.enter_context(Ollmlx(model, "TEMPLATE {{ .Prompt }}"))}
        for peer, start in PEERS.items():
            servers[peer] = stack.enter_context(start(venv, model, logs / f"{peer}.log"))
        prompts = models.prompts(2)
        lengths = {
            label: [a.prompt_tokens for a in client.run([server.completion(p, 8) for p in prompts])]
            for label, server in servers.items()
        }
        if any(numbers != lengths["ollmlx"] for numbers in lengths.values()):
            raise RuntimeError(f"the servers do not compute the same prompts: {lengths}")
        for count in streams:
            yield from _compare(name, servers, count, tokens, rounds)


def _compare(name: str, servers: dict, count: int, tokens: int, rounds: int) -> Iterator[Figure]:
    speed = {s: [] for s in servers}
    median_first = {s: [] for s in servers}
    worst_first = {s: [] for s in servers}
    for _ in range(rounds):
        for label, server in servers.items():
            answers = client.run([server.completion(p, tokens) for p in models.prompts(count)])
            speed[label].append(sum(a.tokens for a in answers) / max(a.last for a in answers))
            median_first[label].append(statistics.median(a.first for a in answers))
            worst_first[label].append(max(a.first for a in answers))
    for peer in servers:
        if peer == "ollmlx":
            continue
        case = f"{name}, {count} stream{'s' * (count > 1)}"
        for what, values, unit, goal in (
            ("tokens/s", speed, "tok/s", {"at_least": 1.0}),
            ("median time to first token", median_first, "s", {"at_most": 1.0}),
            ("worst time to first token", worst_first, "s", {"at_most": 1.0}),
        ):
            ratio, spread = median_ratio(values["ollmlx"], values[peer])
            absolute = {f"{s} {unit}": statistics.median(values[s]) for s in ("ollmlx", peer)}
            yield Figure(f"{what}: ollmlx / {peer}", case, ratio, **goal, detail=spread | absolute)
