"""Streams over HTTP: they interleave, end when the client leaves, and say what mlx-lm says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.support.demo import DEMO
from tests.support.server import Server
from tests.support.tiny_models import ARCHITECTURES, make_model

GREEDY = {"temperature": 0, "num_predict": 60}


def texts(lines: list[dict]) -> str:
    return "".join(line.get("response", "") or line.get("message", {}).get("content", "") for line in lines)


def test_generate_streams_a_sensible_sentence(server: Server) -> None:
    with server.stream(
        "/api/generate", model="demo", prompt="What is ollmlx?", think=False, options=GREEDY
    ) as s:
        lines = list(s)
    assert len(lines) > 10, "tokens come one by one"
    assert "local model server for MLX" in texts(lines)
    assert all(not line["done"] for line in lines[:-1])
    end = lines[-1]
    assert end["done"]
    assert end["done_reason"] == "stop"
    tokens = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(texts(lines)).ids
    assert end["eval_count"] == len(tokens) + 1, "the end-of-sequence token is counted"
    assert 0 < end["prompt_eval_duration"] < end["total_duration"]
    assert 0 < end["eval_duration"] < end["total_duration"]


def test_chat_streams_and_joins_to_the_unstreamed_answer(server: Server) -> None:
    request = {
        "model": "demo",
        "messages": [{"role": "user", "content": "How do I pull a model?"}],
        "think": False,
        "options": GREEDY,
    }
    with server.stream("/api/chat", **request) as s:
        streamed = texts(list(s))
    assert "ollmlx pull" in streamed
    assert server.post("/api/chat", **request)["message"]["content"] == streamed


@pytest.fixture(scope="module")
def endless(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose answers do not end on their own."""
    server.create("endless", make_model(tmp_path_factory.mktemp("endless") / "m", "llama", endless=True))
    return "endless"


def generate(model: str, prompt: str, tokens: int) -> dict:
    return {
        "model": model,
        "prompt": prompt,
        "raw": True,
        "options": {"temperature": 0, "num_predict": tokens},
    }


def test_two_streams_interleave(server: Server, endless: str) -> None:
    with (
        server.stream("/api/generate", **generate(endless, "one", 1500)) as first,
        server.stream("/api/generate", **generate(endless, "two", 1500)) as second,
    ):
        next(first), next(second)
        assert server.runner_status().running == 2
        for _ in range(20):
            assert not next(first)["done"]
            assert not next(second)["done"]


def test_closing_a_stream_stops_its_work_and_no_other(server: Server, endless: str) -> None:
    with server.stream("/api/generate", **generate(endless, "stays", 1800)) as stays:
        next(stays)
        with server.stream("/api/generate", **generate(endless, "leaves", 1800)) as leaves:
            next(leaves)
            assert server.runner_status().running == 2
        closed = time.monotonic()
        while server.runner_status().running == 2:
            assert time.monotonic() - closed < 0.2, (
                "the request of a closed stream must be gone within 200 ms"
            )
        assert not next(stays)["done"]
        assert server.runner_status().running == 1
    closed = time.monotonic()
    while server.runner_status().running:
        assert time.monotonic() - closed < 0.2


@pytest.mark.usefixtures("plain_mlx")
@pytest.mark.parametrize(
    "architecture", ["demo", "llama", "qwen3", "gemma3_text", "mixtral", "deepseek_v2", "lfm2"]
)
def test_greedy_text_equals_mlx_lm(server: Server, tmp_path: Path, architecture: str) -> None:
    path = DEMO
    if architecture in ARCHITECTURES:
        path = make_model(tmp_path / architecture, architecture)
        server.create(architecture, path)
    prompts = ["Tell me a short story about the sea.", "Hi", "What is ollmlx? " * 8]
    answers = [
        server.post(
            "/api/chat", model=architecture, messages=[{"role": "user", "content": p}], options=GREEDY
        )
        for p in prompts
    ]
    got = [a["message"] for a in answers]
    if architecture == "demo":
        got = [f"<think>\n{m['thinking']}\n</think>\n\n{m['content']}" for m in got]
    else:
        got = [m["content"] for m in got]
    assert got == [reference(path, p) for p in prompts]


def reference(path: Path, prompt: str) -> str:
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(path))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    responses = list(mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=GREEDY["num_predict"]))
    ended = responses[-1].finish_reason == "stop"
    return tokenizer.decode([r.token for r in responses[: -1 if ended else None]])
