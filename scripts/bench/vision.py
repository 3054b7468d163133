"""What it brings that rows with images share the batch, and what a second turn about an image costs."""

from __future__ import annotations

import base64
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.tiny_vision_models import make_vision_model, picture

from . import client
from .client import Post
from .conversation import _content
from .figures import Figure, median_ratio
from .servers import Ollmlx

# As large as the llama of models.py; its head of 96 has 48 frequencies for three axes. Its tower is about as heavy
# beside the language model as those of published models.
_SIZES = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 9,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 16, 16]}, "max_position_embeddings": 8192,
    "vision_config": {
        "model_type": "qwen2_vl", "depth": 12, "embed_dim": 384, "num_heads": 6, "patch_size": 14,
        "spatial_patch_size": 14, "mlp_ratio": 4,
    },
}  # fmt: skip
_NAME = "qwen2_vl, 16M"
_images = itertools.count(1000)


def measure(directory: Path, streams: int, tokens: int, rounds: int) -> Iterator[Figure]:
    model = make_vision_model(directory / "qwen2_vl", "qwen2_vl", endless=True, **_SIZES)
    with Ollmlx(model) as server:
        client.run([_post(server, [_question()], tokens)])
        together, alone = [], []
        for _ in range(rounds):
            posts = [_post(server, [_question()], tokens) for _ in range(2 * streams)]
            together.append(_seconds(posts[:streams]))
            alone.append(sum(_seconds([post]) for post in posts[streams:]))
        ratio, detail = median_ratio(alone, together)
        case = f"{_NAME}, {streams} streams"
        yield Figure(
            "tokens/s of requests with images, at once / one after another", case, ratio, detail=detail
        )

        first, second, elsewhere = [], [], []
        for _ in range(rounds):
            messages = [_question((448, 448))]
            [answer] = client.run([_post(server, messages, 16)])
            first.append(answer.first)
            messages += [
                {"role": "assistant", "content": _content(answer.body)},
                {"role": "user", "content": "And then?"},
            ]
            [answer] = client.run([_post(server, messages, 16)])
            second.append(answer.first)
            # No cache of a prompt serves another conversation: what is known of the image does.
            system = {"role": "system", "content": f"Conversation {next(_images)}."}
            [answer] = client.run([_post(server, [system, messages[0]], 16)])
            elsewhere.append(answer.first)
        ratio, detail = median_ratio(second, first)
        detail |= {"first ms": 1000 * statistics.median(first), "second ms": 1000 * statistics.median(second)}
        yield Figure(
            "time to first token of the second turn about an image / first", _NAME, ratio, detail=detail
        )
        ratio, detail = median_ratio(elsewhere, first)
        yield Figure(
            "time to first token of another conversation about an image / first", _NAME, ratio, detail=detail
        )


def _question(size: tuple[int, int] = (112, 112)) -> dict:
    image = base64.b64encode(picture(next(_images), size)).decode()
    return {"role": "user", "content": "What is this?", "images": [image]}


def _post(server: Ollmlx, messages: list[dict], tokens: int) -> Post:
    body = {"model": "bench", "messages": messages, "options": {"temperature": 0, "num_predict": tokens}}
    return Post(f"{server.url}/api/chat", body)


def _seconds(posts: list[Post]) -> float:
    started = time.monotonic()
    client.run(posts)
    return time.monotonic() - started
