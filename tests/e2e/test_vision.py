"""Images from every dialect, and from the command line, to a model that sees."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.tiny_ggufs import make_gguf
from tests.support.tiny_projectors import make_projector
from tests.support.tiny_vision_models import make_vision_model, picture

A, B = picture(1), picture(2)
GREEDY = {"temperature": 0, "num_predict": 16, "repeat_penalty": 1}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_seer(engine: str, directory: Path) -> Path:
    """A model that sees, with random weights, in the engine's format."""
    if engine == "mlx":
        pytest.importorskip("mlx_vlm", reason='needs the extra: pip install "ollmlx[vision]"')
        return make_vision_model(directory / "qwen2_vl", "qwen2_vl", endless=True)
    make_gguf(directory / "llama.gguf", "llama", endless=True)
    make_projector(directory / "mmproj.gguf")
    return directory


@pytest.fixture(scope="module", params=["mlx", "gguf"])
def seer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = make_seer(request.param, tmp_path_factory.mktemp("vision"))
    with Server() as server:
        server.create(
            "seer", path, "PARAMETER temperature 0", "PARAMETER repeat_penalty 1", "PARAMETER num_ctx 2048"
        )
        server.create("framed", path, 'TEMPLATE """U: {{ .Prompt }} A:"""', "PARAMETER num_ctx 2048")
        yield server


def chat(server: Server, text: str, *pictures: bytes) -> dict:
    message = {"role": "user", "content": text, "images": [encoded(p) for p in pictures]}
    return server.post("/api/chat", model="seer", messages=[message], options=GREEDY)


def test_the_model_says_that_it_sees(seer: Server) -> None:
    assert seer.post("/api/show", model="seer")["capabilities"] == ["completion", "vision"]


def test_all_dialects_show_the_same_image(seer: Server) -> None:
    answer = chat(seer, "What is this?", A)
    content, tokens = answer["message"]["content"], answer["prompt_eval_count"]
    assert content
    assert chat(seer, "What is this?", B)["message"]["content"] != content

    url = f"data:image/png;base64,{encoded(A)}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    openai = seer.post(
        "/v1/chat/completions",
        model="seer",
        messages=[{"role": "user", "content": parts}],
        max_tokens=16,
        temperature=0,
    )
    assert openai["choices"][0]["message"]["content"] == content
    assert openai["usage"]["prompt_tokens"] == tokens

    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "What is this?"}]
    response = seer.post(
        "/v1/responses",
        model="seer",
        input=[{"role": "user", "content": parts}],
        max_output_tokens=16,
        temperature=0,
    )
    assert response["output"][-1]["content"][0]["text"] == content

    source = {"type": "base64", "media_type": "image/png", "data": encoded(A)}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    anthropic = seer.post(
        "/v1/messages",
        model="seer",
        messages=[{"role": "user", "content": blocks}],
        max_tokens=16,
        temperature=0,
    )
    assert anthropic["content"][0]["text"] == content

    generated = seer.post(
        "/api/generate", model="seer", prompt="What is this?", images=[encoded(A)], options=GREEDY
    )
    assert generated["response"] == content


def test_the_command_line_shows_an_image_by_its_path(seer: Server, tmp_path: Path) -> None:
    (tmp_path / "it.png").write_bytes(A)
    shown = seer.cli("run", "--verbose", "seer", f"What is this? {tmp_path / 'it.png'}")
    assert shown.returncode == 0, shown.stderr
    assert "Added image" in shown.stdout + shown.stderr


def test_templates_of_a_modelfile_take_images(seer: Server) -> None:
    def generate(*pictures: bytes) -> str:
        images = [encoded(p) for p in pictures]
        return seer.post(
            "/api/generate", model="framed", prompt="What is it?", images=images, options=GREEDY
        )["response"]

    assert len({generate(A), generate(B), generate(A, B), generate()}) == 4


def test_an_image_stands_where_its_message_says(seer: Server) -> None:
    """In what a template makes of it."""

    def say(text: str, *pictures: bytes) -> dict:
        message = {"role": "user", "content": text, "images": [encoded(p) for p in pictures]}
        return seer.post("/api/chat", model="framed", messages=[message], options=GREEDY)

    before, within = say("What is it?", A), say("What is [img] it?", A)
    assert before["message"]["content"] != within["message"]["content"]
    assert say("[img]What is it?", A)["message"]["content"] == before["message"]["content"]
    turns = [
        {"role": "user", "content": "One", "images": [encoded(A)]},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three", "images": [encoded(B)]},
    ]
    swapped = [
        {**turns[0], "images": turns[2]["images"]},
        turns[1],
        {**turns[2], "images": turns[0]["images"]},
    ]
    answers = [seer.post("/api/chat", model="framed", messages=m, options=GREEDY) for m in (turns, swapped)]
    assert answers[0]["message"]["content"] != answers[1]["message"]["content"]


def test_tokens_of_an_image_are_counted(seer: Server) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": encoded(A)}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    for model in ("seer", "framed"):
        body = {"model": model, "messages": [{"role": "user", "content": blocks}]}
        counted = seer.post("/v1/messages/count_tokens", **body)["input_tokens"]
        usage = seer.post("/v1/messages", **body, max_tokens=1)["usage"]
        assert usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0) == counted


def test_the_official_client_sends_a_file(seer: Server, tmp_path: Path) -> None:
    import ollama

    (tmp_path / "it.png").write_bytes(A)
    message = {"role": "user", "content": "What is this?", "images": [tmp_path / "it.png"]}
    answer = ollama.Client(seer.url).chat("seer", messages=[message], options=GREEDY)
    assert answer.message.content == chat(seer, "What is this?", A)["message"]["content"]


@pytest.mark.parametrize(
    ("model", "image", "named"),
    [
        ("seer", A[: len(A) // 2], "damaged or incomplete"),
        ("seer", b"GIF89a", "must be JPEG, PNG or WebP"),
        ("demo", A, "does not support vision"),
    ],
)
def test_what_cannot_be_seen_is_a_400(seer: Server, model: str, image: bytes, named: str) -> None:
    message = {"role": "user", "content": "What is this?", "images": [encoded(image)]}
    response = seer.http.post("/api/chat", json={"model": model, "messages": [message], "stream": False})
    assert response.status_code == 400
    assert named in response.json()["error"]
