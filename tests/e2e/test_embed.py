"""Embeddings through the whole product, with the real all-MiniLM-L6-v2 and with the demo model."""

from __future__ import annotations

import concurrent.futures
import time
from pathlib import Path

import litellm
import numpy as np
import ollama
import pytest

from tests.runner.test_rerank import tiny_reranker
from tests.support.embedding_models import minilm, reference, tiny
from tests.support.server import Server

MINILM = reference()["minilm"]
TEXT, VECTOR = MINILM["texts"][0], MINILM["vectors"][0]
MODEL = "Sentence-Transformers/all-MiniLM"


@pytest.fixture(scope="module")
def embedding(server: Server) -> str:
    server.create(MODEL, minilm())
    return MODEL


@pytest.fixture
def client(server: Server) -> ollama.Client:
    return ollama.Client(host=server.url)


@pytest.fixture
def unloaded(server: Server, embedding: str) -> str:
    server.post("/api/embed", model=embedding, keep_alive=0)
    deadline = time.monotonic() + 20
    while running(server, embedding):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return embedding


def running(server: Server, model: str) -> list[dict]:
    models = server.http.get("/api/ps").json()["models"]
    return [m for m in models if m["name"].lower() == f"{model}:latest".lower()]


def refusal(server: Server, path: str = "/api/embed", **body: object) -> tuple[int, str]:
    response = server.http.post(path, json=body)
    return response.status_code, response.json()["error"]


def test_show_says_what_it_is(server: Server, embedding: str) -> None:
    shown = server.post("/api/show", model=embedding)
    assert shown["capabilities"] == ["embedding"]
    assert shown["details"]["family"] == "bert"
    assert shown["model_info"]["bert.embedding_length"] == 384
    assert shown["model_info"]["bert.context_length"] == 256


def test_one_text_and_many(server: Server, embedding: str) -> None:
    one = server.post("/api/embed", model=embedding, input=TEXT)
    assert one["model"] == embedding
    assert one["prompt_eval_count"] == MINILM["tokens"][0]
    assert one["total_duration"] > 0
    np.testing.assert_allclose(one["embeddings"], [VECTOR], atol=2e-5)
    # The fifth is empty: alone it is no input, in a list it is one.
    many = server.post("/api/embed", model=embedding, input=MINILM["texts"])
    np.testing.assert_allclose(many["embeddings"], MINILM["vectors"], atol=2e-5)
    assert many["prompt_eval_count"] == sum(MINILM["tokens"])


def test_the_older_route_gives_one_vector(server: Server, embedding: str) -> None:
    vector = server.post("/api/embeddings", model=embedding, prompt=TEXT)["embedding"]
    np.testing.assert_allclose(vector, VECTOR, atol=2e-5)
    assert server.post("/api/embeddings", model=embedding)["embedding"] == []


def test_ollamas_python_client(client: ollama.Client, embedding: str) -> None:
    answer = client.embed(model=embedding, input=[TEXT, TEXT], dimensions=64, keep_alive="5m")
    want = np.array(VECTOR[:64]) / np.linalg.norm(VECTOR[:64])
    np.testing.assert_allclose(answer.embeddings, [want, want], atol=2e-5)
    assert answer.prompt_eval_count == 2 * MINILM["tokens"][0]
    np.testing.assert_allclose(client.embeddings(model=embedding, prompt=TEXT).embedding, VECTOR, atol=2e-5)
    with pytest.raises(ollama.ResponseError, match="the input length exceeds the context length") as err:
        client.embed(model=embedding, input="word " * 300, truncate=False)
    assert err.value.status_code == 400
    assert client.embed(model=embedding, input="word " * 300).prompt_eval_count == 256
    assert client.embed(model=embedding, input="word " * 300, options={"num_ctx": 16}).prompt_eval_count == 16


def test_no_input_loads_and_keep_alive_unloads(server: Server, unloaded: str) -> None:
    assert server.post("/api/embed", model=unloaded)["embeddings"] == []
    assert running(server, unloaded), "it was not loaded"
    server.post("/api/embed", model=unloaded, input="x", keep_alive=0)
    deadline = time.monotonic() + 20
    while running(server, unloaded):
        assert time.monotonic() < deadline, "keep_alive 0 does not unload"
        time.sleep(0.02)


def test_text_is_refused(server: Server, embedding: str) -> None:
    message = {"role": "user", "content": "Hi"}
    assert refusal(server, "/api/generate", model=embedding, prompt="Hi") == (
        400,
        f'"{embedding}" does not support generate',
    )
    assert refusal(server, "/api/chat", model=embedding, messages=[message]) == (
        400,
        f'"{embedding}" does not support chat',
    )


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": 3}, 400, "invalid input type"),
        ({"input": ["a", None]}, 400, "invalid input type"),
        ({"input": "a", "dimensions": -1}, 400, "dimensions must not be negative, got -1"),
        (
            {"input": "a", "dimensions": 999},
            400,
            "dimensions must not be larger than the 384 of this model, got 999",
        ),
        ({"input": "word " * 300, "truncate": False}, 400, "the input length exceeds the context length"),
    ],
)
def test_bad_requests(
    server: Server, embedding: str, body: dict[str, object], status: int, message: str
) -> None:
    assert refusal(server, model=embedding, **body) == (status, message)


def test_a_model_that_is_not_there(server: Server) -> None:
    assert refusal(server, model="nowhere", input="x")[0] == 404


def test_the_command_line_prints_the_vector(server: Server, embedding: str) -> None:
    done = server.cli("run", embedding, TEXT)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([float(n) for n in done.stdout.strip()[1:-1].split(",")], VECTOR, atol=2e-5)


def test_many_clients_at_once(server: Server, embedding: str) -> None:
    def ask(i: int) -> list[float]:
        return server.post("/api/embed", model=embedding, input=[f"number {i}", TEXT])["embeddings"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    for answer in answers:
        np.testing.assert_allclose(answer[1], VECTOR, atol=2e-5)
    assert len({tuple(np.round(a[0], 4)) for a in answers}) == 24


def test_the_demo_model_embeds_while_it_talks(server: Server) -> None:
    with server.stream("/api/generate", model="demo", prompt="Tell me a long story.") as events:
        next(events)
        answer = server.post("/api/embed", model="demo", input=["a cat", "a dog", "cats " * 500])
    vectors = np.array(answer["embeddings"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors.shape[0] == 3
    raw = server.post("/api/embeddings", model="demo", prompt="a cat")["embedding"]
    assert np.linalg.norm(raw) > 1.01
    np.testing.assert_allclose(np.array(raw) / np.linalg.norm(raw), vectors[0], atol=1e-4)


def test_a_client_that_hangs_up_stops_the_work(server: Server, embedding: str) -> None:
    server.post("/api/embed", model=embedding, input="x")
    with pytest.raises(Exception, match="timed out"):
        server.http.post(
            "/api/embed", json={"model": embedding, "input": ["word " * 254] * 3000}, timeout=1.5
        )
    deadline = time.monotonic() + 20
    while server.runner_status().running:
        assert time.monotonic() < deadline, "the work goes on"
        time.sleep(0.05)


def test_what_follows_the_pooling_is_kept_by_the_store(server: Server, tmp_path: Path) -> None:
    matrix = np.linspace(-1, 1, 5 * 16).reshape(5, 16)
    server.create(
        "narrow", tiny(tmp_path / "m", "roberta", pooling="cls_token", dense=matrix, normalize=True)
    )
    shown = server.post("/api/show", model="narrow")
    assert shown["model_info"]["roberta.embedding_length"] == 5
    assert shown["model_info"]["roberta.context_length"] == 32
    vector = server.post("/api/embeddings", model="narrow", prompt="text")["embedding"]
    assert len(vector) == 5
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert refusal(server, model="narrow", input="x" * 33, truncate=False)[0] == 400
    assert server.post("/api/embed", model="narrow", input="x" * 40)["prompt_eval_count"] == 32


def test_rerank(server: Server, tmp_path: Path) -> None:
    server.create("reranker", tiny_reranker(tmp_path / "model"))
    assert server.post("/api/show", model="reranker")["capabilities"] == ["rerank"]
    request = {"query": "fox", "documents": ["a fox", "a dog", "x"]}
    answer = server.post("/v1/rerank", model="reranker", **request, return_documents=True)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and 0 < scores[-1] < scores[0] < 1
    assert {r["index"]: r["document"]["text"] for r in answer["results"]} == {0: "a fox", 1: "a dog", 2: "x"}
    [best] = server.post("/v2/rerank", model="reranker", **request, top_n=1)["results"]
    assert best == {key: answer["results"][0][key] for key in ("index", "relevance_score")}
    by_litellm = litellm.rerank(
        model="hosted_vllm/reranker", api_base=f"{server.url}/v1", api_key="none", top_n=2, **request
    )
    assert [r["index"] for r in by_litellm.results] == [r["index"] for r in answer["results"][:2]]
    for path, body, text in (
        ("/api/embed", {"model": "reranker", "input": "x"}, "does not support embeddings"),
        ("/api/generate", {"model": "reranker", "prompt": "x"}, '"reranker" does not support generate'),
    ):
        assert text in refusal(server, path, **body)[1]
    server.http.request("DELETE", "/api/delete", json={"model": "reranker"})
