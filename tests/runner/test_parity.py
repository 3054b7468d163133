"""Greedy text of the engine equals mlx-lm's own, alone and in a batch of eight mixed prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import ARCHITECTURES, MORE_ARCHITECTURES
from tests.support.worker import InProcess

pytestmark = pytest.mark.usefixtures("plain_mlx")

PROMPTS = ["Hi", "The quick brown fox jumps over the lazy dog. " * 3, "Grüße aus Köln, 你好 🌍", "x" * 70]
TOKENS = 32


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES | MORE_ARCHITECTURES))
def test_greedy_text_equals_mlx_lm(architecture: str, tiny_model: Callable[[str], Path]) -> None:
    path = tiny_model(architecture)
    expected = reference(path)
    assert len(set(expected)) == len(PROMPTS), (
        "the model must tell the prompts apart for this test to mean something"
    )

    with InProcess(path) as model:
        alone = [model.run(**request(p)).content for p in PROMPTS]
        together = [a.content for a in model.run_together([request(p) for p in PROMPTS * 2])]
    assert alone == expected
    assert together == expected * 2


def request(prompt: str) -> dict[str, object]:
    return {
        "chat": pb.Chat(messages=[pb.Message(role="user", content=prompt)]),
        "options": pb.Options(num_predict=TOKENS, temperature=0),
    }


def reference(path: Path) -> list[str]:
    """What mlx-lm itself generates for each prompt, decoded as a whole."""
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(path))
    answers = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        responses = list(mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=TOKENS))
        ended = responses[-1].finish_reason == "stop"
        answers.append(tokenizer.decode([r.token for r in responses[: -1 if ended else None]]))
    return answers
