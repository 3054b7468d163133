"""Greedy text of the GGUF engine equals that of llama.cpp's own server, alone and in a mixed batch; so do
embeddings."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

from ollmlx.runner.gguf.vectors import embed
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.gguf_models import InProcess, own_server
from tests.support.tiny_ggufs import ARCHITECTURES, make_gguf

PROMPTS = ["Hi", "The quick brown fox jumps over the lazy dog. " * 3, "Grüße aus Köln, 你好 🌍", "x" * 70]
TOKENS = 32


# Quantized, the tiny state-space model says the same to everything.
CASES = [(a, q) for a in sorted(ARCHITECTURES) for q in ("F32", "Q8_0", "Q4_0") if a != "mamba" or q == "F32"]


@pytest.mark.parametrize(("architecture", "quantization"), CASES)
def test_greedy_text_equals_the_servers(architecture: str, quantization: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "model.gguf", architecture, quantization, endless=True)
    with own_server(path) as server:
        expected = [chat(server, prompt) for prompt in PROMPTS]
        raw = [complete(server, prompt) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS), (
        "the model must tell the prompts apart for this test to mean something"
    )
    # One slot as the server has: what a prompt shares with the one before it is computed with that one, and quantized
    # matrices do not give the same last bits in batches of other sizes.
    with InProcess(path, num_parallel=1) as model:
        assert [model.run(**request(p)).content for p in PROMPTS] == expected
        assert [model.run(**prompt_request(p)).content for p in PROMPTS] == raw
    if quantization == "F32":
        with InProcess(path, num_parallel=4) as model:
            assert [a.content for a in model.run_together([request(p) for p in PROMPTS])] == expected


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
def test_embeddings_equal_the_servers(architecture: str, tmp_path: Path) -> None:
    import xllamacpp

    path = make_gguf(tmp_path / "model.gguf", architecture)
    last = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    with own_server(path, embedding=True, pooling_type=last, embd_normalize=2) as server:
        answer = server.post("/v1/embeddings", json={"input": PROMPTS}).json()
    with InProcess(path) as model:
        response = embed(model.model, pb.EmbedRequest(inputs=PROMPTS, normalize=True))
    got = np.array([list(e.values) for e in response.embeddings])
    np.testing.assert_allclose(got, [e["embedding"] for e in answer["data"]], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert response.prompt_tokens == answer["usage"]["prompt_tokens"]


def request(prompt: str) -> dict[str, object]:
    return {
        "chat": pb.Chat(messages=[pb.Message(role="user", content=prompt)]),
        "options": pb.Options(num_predict=TOKENS, temperature=0),
    }


def prompt_request(prompt: str) -> dict[str, object]:
    return {"prompt": pb.Prompt(text=prompt), "options": pb.Options(num_predict=TOKENS, temperature=0)}


def chat(server: httpx.Client, prompt: str) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS, "temperature": 0}
    return server.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]


def complete(server: httpx.Client, prompt: str) -> str:
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0}
    return server.post("/completion", json=body).json()["content"]
