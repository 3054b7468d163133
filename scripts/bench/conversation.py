"""What the second turn of a long conversation costs, and after its model was unloaded in between."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import mlx_lm.utils

from . import client, models
from .client import Post
from .figures import Figure
from .servers import Ollmlx

# Environment that turns the disk tier of the prefix cache on.
DISK_TIER = {"OLLMLX_PREFIX_CACHE": "4GB"}
_QUESTION = "time to first token of the second turn / first"


def measure(name: str, model: Path, rounds: int, tokens: int = 2000) -> Iterator[Figure]:
    tokenizer = mlx_lm.utils.load_tokenizer(model)
    with Ollmlx(model, **DISK_TIER) as server:
        client.run([_turn(server, [{"role": "user", "content": "Hello."}])])
        for unload, goal in ((False, 0.05), (True, 0.15)):
            first, second = [], []
            for _ in range(rounds):
                messages = [{"role": "user", "content": models.text(tokenizer, tokens)}]
                [answer] = client.run([_turn(server, messages)])
                first.append(answer.first)
                messages.append({"role": "assistant", "content": _content(answer.body)})
                messages.append({"role": "user", "content": "And then?"})
                if unload:
                    server.http.post("/api/generate", json={"model": "bench", "keep_alive": 0})
                    # Loading the model is not part of the figure.
                    server.http.post("/api/generate", json={"model": "bench"})
                [answer] = client.run([_turn(server, messages)])
                second.append(answer.first)
            ratios = [b / a for a, b in zip(first, second, strict=True)]
            yield Figure(
                _QUESTION + (", after an unload" if unload else ""), f"{name}, {tokens} tokens",
                statistics.median(ratios), at_most=goal,
                detail={
                    "lowest": min(ratios), "highest": max(ratios),
                    "first ms": 1000 * statistics.median(first), "second ms": 1000 * statistics.median(second),
                },
            )  # fmt: skip


def _turn(server: Ollmlx, messages: list[dict]) -> Post:
    body = {"model": "bench", "messages": messages, "options": {"temperature": 0, "num_predict": 32}}
    return Post(f"{server.url}/api/chat", body)


def _content(body: bytes) -> str:
    lines = (line for line in body.split(b"\n") if line.startswith(b"{"))
    return "".join(json.loads(line).get("message", {}).get("content", "") for line in lines)
