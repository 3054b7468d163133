"""LiteLLM against a running server with the demo model, over OpenAI's API and over Ollama's own."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.support.server import Server

# It would fetch a list of prices when imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

QUESTION = [{"role": "user", "content": "What is ollmlx?"}]
ANSWER = "local model server for MLX"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(params=["openai/demo", "ollama_chat/demo"])
def route(request: pytest.FixtureRequest, server: Server) -> dict[str, Any]:
    base = f"{server.url}/v1" if request.param.startswith("openai/") else server.url
    return {"model": request.param, "api_base": base, "api_key": "none", "temperature": 0, "num_retries": 0}


def test_completion(route: dict[str, Any]) -> None:
    answer = litellm.completion(**route, messages=QUESTION, drop_params=True)
    message = answer.choices[0].message
    assert ANSWER in message.content
    assert message.reasoning_content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 10


def test_stream(route: dict[str, Any]) -> None:
    chunks = list(litellm.completion(**route, messages=QUESTION, stream=True))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert ANSWER in "".join(d.content or "" for d in deltas)
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_async(route: dict[str, Any]) -> None:
    answer = await litellm.acompletion(**route, messages=QUESTION)
    assert ANSWER in answer.choices[0].message.content


def test_tools(route: dict[str, Any]) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    answer = litellm.completion(**route, messages=messages, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    messages += [
        answer.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "24 degrees and sunny"},
    ]
    final = litellm.completion(**route, messages=messages, tools=[WEATHER])
    assert "24" in final.choices[0].message.content


def test_json(route: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    answer = litellm.completion(
        **route,
        messages=[{"role": "user", "content": "Name a color"}],
        response_format={"type": "json_schema", "json_schema": {"name": "color", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content)["color"] in ("red", "green")


def test_error(route: dict[str, Any]) -> None:
    with pytest.raises((litellm.NotFoundError, litellm.APIConnectionError), match="no-such-model"):
        litellm.completion(
            **route | {"model": route["model"].replace("demo", "no-such-model")}, messages=QUESTION
        )


@pytest.mark.parametrize("model", ["openai/demo", "ollama/demo"])
def test_embedding(server: Server, model: str) -> None:
    base = f"{server.url}/v1" if model.startswith("openai/") else server.url
    answer = litellm.embedding(model=model, api_base=base, api_key="none", input=["a server", "the weather"])
    one, two = (e["embedding"] for e in answer.data)
    assert len(one) == len(two) > 16
    assert one != two


def test_responses(server: Server) -> None:
    answer = litellm.responses(
        model="openai/demo",
        api_base=f"{server.url}/v1",
        api_key="none",
        input="What is ollmlx?",
        temperature=0,
    )
    texts = [part.text for item in answer.output if item.type == "message" for part in item.content]
    assert ANSWER in "".join(texts)
