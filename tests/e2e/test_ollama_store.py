"""The store of an existing Ollama: its models run as they are, and nothing in it changes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.support.ollama_store import add_model
from tests.support.server import Server
from tests.support.tiny_ggufs import make_bert_gguf, make_gguf
from tests.support.tiny_projectors import make_projector
from tests.support.tiny_vision_models import picture

GREEDY = {"temperature": 0, "num_predict": 8, "repeat_penalty": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import gguf

    directory = tmp_path_factory.mktemp("ollama")
    store = directory / "models"
    model = make_gguf(directory / "m.gguf", "llama", endless=True).read_bytes()
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "107K",
        "file_type": "F32",
    }
    add_model(
        store,
        "tiny:1b",
        config,
        [
            ("model", model),
            ("template", b"{{ .System }}{{ .Prompt }}>"),
            ("system", b"Be short."),
            ("params", json.dumps({"stop": ["<|im_end|>"], "num_ctx": 512}).encode()),
            ("license", b"MIT"),
        ],
    )
    projector = make_projector(directory / "p.gguf").read_bytes()
    add_model(
        store,
        "seer:latest",
        {**config, "model_families": ["llama", "clip"]},
        [("model", model), ("projector", projector), ("template", b"USER: {{ .Prompt }} ASSISTANT:")],
    )
    encoder = make_bert_gguf(directory / "b.gguf", gguf.PoolingType.MEAN).read_bytes()
    bert = {**config, "model_family": "bert", "model_families": ["bert"]}
    add_model(store, "encoder:latest", bert, [("model", encoder)])
    return store


def contents(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def test_its_models_are_listed_shown_and_run(store: Path) -> None:
    before = contents(store)
    with Server(OLLAMA_MODELS=str(store), OLLAMA_NOPRUNE="1") as server:
        listed = {m["name"] for m in server.http.get("/api/tags").json()["models"]}
        assert {"tiny:1b", "seer:latest", "encoder:latest"} <= listed
        shown = server.post("/api/show", model="tiny:1b")
        assert shown["capabilities"] == ["completion"] and shown["license"] == "MIT"
        assert shown["template"] == "{{ .System }}{{ .Prompt }}>"
        assert server.post("/api/show", model="seer")["capabilities"] == ["completion", "vision"]

        said = server.post("/api/generate", model="tiny:1b", prompt="Hello", options=GREEDY)
        raw = server.post(
            "/api/generate", model="tiny:1b", prompt="Be short.Hello>", raw=True, options=GREEDY
        )
        assert said["eval_count"] == 8 and said["response"] == raw["response"]
        [loaded] = server.http.get("/api/ps").json()["models"]
        assert loaded["context_length"] == 512

        def see(*images: bytes) -> str:
            shown = [base64.b64encode(i).decode() for i in images]
            return server.post("/api/generate", model="seer", prompt="What?", images=shown, options=GREEDY)[
                "response"
            ]

        assert len({see(), see(picture(1)), see(picture(2))}) == 3
        assert len(server.post("/api/embed", model="encoder", input="a cat")["embeddings"][0]) == 64
    after = contents(store)
    assert {path: after.get(path) for path in before} == before
