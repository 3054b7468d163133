"""MLX and GGUF models behind one server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import psutil
import pytest

from tests.support.server import Server
from tests.support.tiny_ggufs import make_demo_gguf, make_gguf

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ggufs")
    make_demo_gguf(directory / "demo.gguf")
    make_gguf(directory / "tiny.gguf", "llama", endless=True)
    return directory


@pytest.fixture(scope="module")
def both(files: Path) -> Iterator[Server]:
    """A server with the demo model twice: `demo` in MLX format and `demo-gguf`."""
    with Server() as server:
        server.create("demo-gguf", files / "demo.gguf")
        server.create("tiny", files / "tiny.gguf", "PARAMETER num_ctx 512")
        yield server


def runner_of(server: Server, engine: str) -> psutil.Process:
    [found] = [p for p in server.runner_processes() if engine in p.cmdline()]
    return found


def test_one_conversation_moves_between_engines(both: Server) -> None:
    client = ollama.Client(host=both.url)
    messages: list[Any] = []

    def say(model: str, text: str, **more: Any) -> ollama.Message:
        messages.append({"role": "user", "content": text})
        answer = client.chat(model, messages, options={"temperature": 0}, **more).message
        messages.append(answer)
        return answer

    first = say("demo", "What is ollmlx?")
    assert "local model server" in first.content
    second = say("demo-gguf", "What is ollmlx?")
    assert "local model server" in second.content and second.thinking
    call = say("demo", "What is the weather in Paris?", tools=[WEATHER]).tool_calls[0]
    assert call.function.arguments == {"city": "Paris"}
    messages.append({"role": "tool", "content": "It is sunny and 21 degrees.", "tool_name": "get_weather"})
    answer = client.chat("demo-gguf", messages, tools=[WEATHER], options={"temperature": 0}).message
    assert answer.content and not answer.tool_calls
    messages.append(answer)
    call = say("demo-gguf", "What is the weather in Rome?", tools=[WEATHER]).tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Rome"})
    # Both have read all of it.
    counts = {
        m: client.chat(m, messages, options={"num_predict": 1}).prompt_eval_count
        for m in ("demo", "demo-gguf")
    }
    assert counts["demo"] == counts["demo-gguf"]


def test_both_say_the_same(both: Server) -> None:
    """The same weights, the same tokenizer, the same template."""
    body = {"messages": [{"role": "user", "content": "What is ollmlx?"}], "options": {"temperature": 0}}
    mlx, gguf = (both.post("/api/chat", model=model, **body) for model in ("demo", "demo-gguf"))
    assert gguf["message"] == mlx["message"]
    assert gguf["prompt_eval_count"] == mlx["prompt_eval_count"]


def test_a_gguf_runner_listens_on_no_port(both: Server) -> None:
    both.post("/api/generate", model="demo-gguf", prompt="Hi", options={"num_predict": 1})
    runner = runner_of(both, "gguf")
    listening = [c for c in runner.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert listening == []


def test_load_options_are_honoured_and_reload(both: Server) -> None:
    def loaded() -> dict[str, Any]:
        [model] = [m for m in both.http.get("/api/ps").json()["models"] if m["name"] == "tiny:latest"]
        return model

    both.post("/api/generate", model="tiny", prompt="Hi", options={"num_predict": 1})
    assert loaded()["context_length"] == 512
    first = runner_of(both, "gguf") if len(both.runner_processes()) == 1 else None
    both.post(
        "/api/generate",
        model="tiny",
        prompt="Hi",
        options={"num_predict": 1, "num_ctx": 1024, "num_thread": 1},
    )
    assert loaded()["context_length"] == 1024
    assert first is None or not first.is_running()


def test_a_context_that_is_full_is_shifted_or_ends(both: Server) -> None:
    body = {"model": "tiny", "prompt": "Once", "raw": True, "options": {"num_predict": 700}}
    assert both.post("/api/generate", **body)["eval_count"] == 700
    ended = both.post("/api/generate", **body, shift=False)
    assert (ended["done_reason"], ended["prompt_eval_count"] + ended["eval_count"]) == ("length", 512)


def test_context_of_generate_goes_on(both: Server) -> None:
    first = both.post(
        "/api/generate", model="tiny", prompt="Hello", options={"num_predict": 5, "temperature": 0}
    )
    more = both.post(
        "/api/generate", model="tiny", prompt="Go on", context=first["context"], options={"num_predict": 1}
    )
    assert more["prompt_eval_count"] > len(first["context"])


def test_a_template_is_rendered_by_the_host(both: Server, files: Path) -> None:
    template = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    template += "<|im_start|>assistant\n"
    both.create("templated", files / "demo.gguf", f'TEMPLATE """{template}"""')
    body = {"messages": [{"role": "user", "content": "What is ollmlx?"}], "options": {"temperature": 0}}
    answer = both.post("/api/chat", model="templated", **body)
    # It knows nothing of thinking, so what the model thinks is part of the text.
    assert answer["message"]["content"].startswith("<think>")
    assert "local model server" in answer["message"]["content"]


def test_embeddings_of_a_gguf_model(both: Server) -> None:
    vectors = both.post("/api/embed", model="tiny", input=["a cat", "a dog"])["embeddings"]
    assert [len(v) for v in vectors] == [64, 64]
    assert all(abs(sum(x * x for x in v) - 1) < 1e-4 for v in vectors)


def test_a_file_that_llama_cpp_cannot_run_says_why(both: Server, files: Path) -> None:
    make_gguf(files / "odd.gguf", "llama", metadata={"llama.rope.dimension_count": 7})
    both.create("odd", files / "odd.gguf")
    answer = both.http.post("/api/generate", json={"model": "odd", "prompt": "Hi"})
    assert answer.status_code >= 400
    assert "odd:latest cannot be loaded" in answer.json()["error"]


def test_a_malformed_file_is_refused_when_it_is_created(both: Server, files: Path) -> None:
    (files / "cut.gguf").write_bytes((files / "tiny.gguf").read_bytes()[:-100])
    modelfile = files / "Modelfile"
    modelfile.write_text(f"FROM {files / 'cut.gguf'}")
    done = both.cli("create", "cut", "-f", str(modelfile))
    assert done.returncode != 0
    assert "reaches beyond the end of the file" in done.stderr
