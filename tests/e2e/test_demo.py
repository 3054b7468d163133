"""The demo model through the whole product: thinking, tools, JSON, and the command line."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.demo import WEATHER
from tests.support.server import BINARY, Server, free_port

GREEDY = {"temperature": 0}


def chat(server: Server, *messages: dict, **fields: object) -> dict:
    return server.post("/api/chat", model="demo", messages=list(messages), options=GREEDY, **fields)[
        "message"
    ]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_thinking_is_apart_from_the_answer(server: Server) -> None:
    thoughtful = chat(server, user("What is ollmlx?"), think=True)
    assert thoughtful["thinking"]
    assert "<think>" not in thoughtful["content"]
    assert "</think>" not in thoughtful["content"]
    assert "thinking" not in chat(server, user("What is ollmlx?"), think=False)


def test_a_tool_is_called_and_its_result_used(server: Server) -> None:
    question = user("What is the weather in Paris?")
    answer = chat(server, question, tools=[WEATHER], think=False)
    [call] = answer["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert call["function"]["arguments"] == {"city": "Paris"}
    assert call["id"].startswith("call_")
    result = {"role": "tool", "tool_name": "get_weather", "content": "sunny, 24 degrees"}
    final = chat(server, question, answer, result, tools=[WEATHER], think=False)
    assert "tool_calls" not in final
    assert "24" in final["content"]


def test_official_client(server: Server) -> None:
    import ollama

    client = ollama.Client(host=server.url)
    assert "demo:latest" in [m.model for m in client.list().models]
    assert client.show("demo").capabilities == ["completion", "tools", "thinking"]
    parts = list(client.chat("demo", [user("Hello")], stream=True, think=False))
    assert len(parts) > 3
    assert parts[-1].done_reason == "stop"
    answer = client.chat("demo", [user("What is the weather in London?")], tools=[WEATHER], think=False)
    assert answer.message.tool_calls[0].function.arguments == {"city": "London"}
    assert client.generate("demo", "Hello", think=False).response
    assert [m.model for m in client.ps().models if m.model == "demo:latest"]
    [status, *_, last] = [p.status for p in client.pull("demo", stream=True)]
    assert (status, last) == ("pulling manifest", "success")
    with pytest.raises(ollama.ResponseError, match="model 'no-such-model' not found") as err:
        client.chat("no-such-model", [user("Hi")])
    assert err.value.status_code == 404


def test_run_answers_through_the_command_line(server: Server) -> None:
    done = server.cli("run", "demo", "--think=false", "What is ollmlx?")
    assert done.returncode == 0, done.stderr
    assert "local model server for MLX" in done.stdout
    piped = server.cli("run", "demo", "--think=false", stdin="How do I pull a model?")
    assert "ollmlx pull" in piped.stdout


def test_run_without_a_server_starts_one_for_its_own_life(server: Server) -> None:
    environment = server.environment | {
        "OLLAMA_HOST": f"127.0.0.1:{free_port()}",
        "OLLAMA_MODELS": str(server.root / "other-models"),
    }
    done = subprocess.run(
        [BINARY, "run", "demo", "--think=false", "What is ollmlx?"],
        env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "local model server" in done.stdout
    assert "starting one" in done.stderr
    refused = subprocess.run([BINARY, "list"], env=environment, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1
    assert "could not connect" in refused.stderr


def test_json_answers(server: Server) -> None:
    answer = chat(server, user("Answer in JSON: what is ollmlx?"), think=False)
    assert isinstance(json.loads(answer["content"]), dict)
