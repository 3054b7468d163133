"""Every key of every answer of the /v1 routes against the models of the official clients: none is missing, none is of
a wrong type, and none is there that the API does not know, but for those that are named here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic.types
import httpx
import openai.types
import openai.types.chat
import openai.types.responses
import openai.types.shared
import pydantic
import pytest
from openai.types.responses.input_token_count_response import InputTokenCountResponse

from tests.support.demo import WEATHER
from tests.support.server import Server

QUESTION = {"role": "user", "content": "What is ollmlx?"}
ASK_WEATHER = {"role": "user", "content": "What is the weather in Paris?"}
GREEDY = {"model": "demo", "temperature": 0}
CHAT = {**GREEDY, "messages": [QUESTION], "reasoning_effort": "none", "max_tokens": 8}
RESPONSE = {**GREEDY, "input": "What is ollmlx?", "reasoning": {"effort": "none"}, "max_output_tokens": 20}
MESSAGE = {**GREEDY, "messages": [QUESTION], "max_tokens": 8, "thinking": {"type": "disabled"}}
FLAT_WEATHER = {"type": "function", **WEATHER["function"]}
ANTHROPIC_WEATHER = {
    "name": WEATHER["function"]["name"],
    "input_schema": WEATHER["function"]["parameters"],
}

# What Ollama and others add: OpenAI shows no reasoning in chat completions, and numbers calls in streams only.
ADDED = {
    "choices.message.reasoning",
    "choices.message.reasoning_content",
    "choices.delta.reasoning",
    "choices.delta.reasoning_content",
    "choices.message.tool_calls.index",
}
# OpenAI sends the first, which its client's model leaves out; the others are of the open form of this API.
RESPONSE_ADDED = {"store", "frequency_penalty", "presence_penalty"}
# The form that the same tokens have in the whole answer, and the function that is called.
EVENT_ADDED = {"logprobs.bytes", "logprobs.top_logprobs.bytes", "name"} | {
    f"response.{key}" for key in RESPONSE_ADDED
}


def extras(value: Any, at: str = "") -> Iterator[str]:
    """The paths of keys that a model does not declare."""
    if isinstance(value, pydantic.BaseModel):
        for key in value.model_extra or {}:
            yield f"{at}.{key}".removeprefix(".")
        for key in type(value).model_fields:
            yield from extras(getattr(value, key), f"{at}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from extras(item, at)


def check(kind: Any, data: Any, allowed: set[str] = frozenset()) -> None:
    try:
        value = pydantic.TypeAdapter(kind).validate_json(json.dumps(data), strict=True)
    except pydantic.ValidationError as error:
        raise AssertionError(f"{json.dumps(data)}\n{error}") from error
    assert set(extras(value)) <= allowed, data


def post(server: Server, path: str, body: dict[str, Any], **headers: str) -> Any:
    response = server.http.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def events(server: Server, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream; where they have names, those agree with their types."""
    response = server.http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields.get("data") in (None, "[DONE]"):
            continue
        found.append(json.loads(fields["data"]))
        assert fields.get("event") in (None, found[-1].get("type"))
    return found


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"reasoning_effort": "low", "max_tokens": 60},
        {"tools": [WEATHER], "messages": [ASK_WEATHER], "max_tokens": 100},
        {"response_format": {"type": "json_object"}},
    ],
    ids=["plain", "logprobs", "reasoning", "tools", "json"],
)
def test_chat_completions(server: Server, more: dict[str, Any]) -> None:
    body = {**CHAT, **more}
    answer = post(server, "/v1/chat/completions", body)
    check(openai.types.chat.ChatCompletion, answer, ADDED)
    message = answer["choices"][0]["message"]
    assert ("tools" in more) == bool(message.get("tool_calls"))
    assert (more.get("reasoning_effort") == "low") == bool(message.get("reasoning"))
    chunks = events(server, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    for chunk in chunks:
        check(openai.types.chat.ChatCompletionChunk, chunk, ADDED)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}], ids=["plain", "logprobs"])
def test_completions(server: Server, more: dict[str, Any]) -> None:
    body = {**GREEDY, "prompt": "ollmlx is", "max_tokens": 8, **more}
    check(openai.types.Completion, post(server, "/v1/completions", body))
    for chunk in events(server, "/v1/completions", {**body, "stream_options": {"include_usage": True}}):
        for choice in chunk[
            "choices"
        ]:  # null until the end, as OpenAI does, which the client's model leaves out
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        check(openai.types.Completion, chunk)


def test_embeddings(server: Server) -> None:
    body = {"model": "demo", "input": ["one", "two"]}
    check(openai.types.CreateEmbeddingResponse, post(server, "/v1/embeddings", body))
    packed = post(server, "/v1/embeddings", {**body, "encoding_format": "base64"})
    for item in packed["data"]:  # the client's model has the vector after it is unpacked
        assert isinstance(item.pop("embedding"), str)
        item["embedding"] = [0.0]
    check(openai.types.CreateEmbeddingResponse, packed)


def test_models(server: Server) -> None:
    listed = server.http.get("/v1/models").json()
    assert listed.pop("object") == "list" and set(listed) == {"data"}
    for model in listed["data"]:
        check(openai.types.Model, model)
    check(openai.types.Model, server.http.get("/v1/models/demo").json())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
        {"reasoning": {"effort": "low"}, "max_output_tokens": 60},
        {"tools": [FLAT_WEATHER], "input": ASK_WEATHER["content"], "max_output_tokens": 100},
        {"metadata": {"a": "b"}, "user": "u", "instructions": "Be brief."},
    ],
    ids=["plain", "logprobs", "reasoning", "tools", "metadata"],
)
def test_responses(server: Server, more: dict[str, Any]) -> None:
    body = {**RESPONSE, **more}
    answer = post(server, "/v1/responses", body)
    check(openai.types.responses.Response, answer, RESPONSE_ADDED)
    kinds = [item["type"] for item in answer["output"]]
    assert ("function_call" in kinds) == ("tools" in more)
    assert ("reasoning" in kinds) == ("reasoning" in more)
    streamed = events(server, "/v1/responses", body)
    for event in streamed:
        check(openai.types.responses.ResponseStreamEvent, event, EVENT_ADDED)
    assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
    counted = post(server, "/v1/responses/input_tokens", body)
    check(InputTokenCountResponse, counted)
    assert counted["input_tokens"] == answer["usage"]["input_tokens"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 60},
        {"tools": [ANTHROPIC_WEATHER], "messages": [ASK_WEATHER], "max_tokens": 100},
        {"stop_sequences": ["local"], "max_tokens": 40},
    ],
    ids=["plain", "thinking", "tools", "stop"],
)
def test_messages(server: Server, more: dict[str, Any]) -> None:
    body = {**MESSAGE, **more}
    answer = post(server, "/v1/messages", body)
    check(anthropic.types.Message, answer)
    kinds = [block["type"] for block in answer["content"]]
    assert ("tool_use" in kinds) == ("tools" in more)
    assert ("thinking" in kinds) == ("thinking" in more)
    for event in events(server, "/v1/messages", body):
        if event["type"] != "ping":
            check(anthropic.types.RawMessageStreamEvent, event)
    counted = post(server, "/v1/messages/count_tokens", {k: v for k, v in body.items() if k != "max_tokens"})
    check(anthropic.types.MessageTokensCount, counted)
    usage = answer["usage"]
    total = sum(usage[k] for k in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"))
    assert counted["input_tokens"] == total


def test_models_of_anthropic(server: Server) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    listed = server.http.get("/v1/models", headers=headers).json()
    assert set(listed) == {"data", "has_more", "first_id", "last_id"}
    for model in listed["data"]:
        check(anthropic.types.ModelInfo, model)
    check(anthropic.types.ModelInfo, server.http.get("/v1/models/demo", headers=headers).json())
    missing = server.http.get("/v1/models/none", headers=headers)
    assert missing.status_code == 404
    check(anthropic.types.ErrorResponse, missing.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {**CHAT, "model": "none"}),
        ("/v1/completions", {"model": "demo", "n": 2}),
        ("/v1/embeddings", {"model": "demo", "input": []}),
        ("/v1/responses", {**RESPONSE, "previous_response_id": "x"}),
        ("/v1/audio/transcriptions", {}),
        ("/v1/messages", {}),
        ("/v1/messages", {**MESSAGE, "model": "none"}),
        ("/v1/messages/count_tokens", {"model": "demo"}),
        ("/v1/messages/batches", {}),
    ],
)
def test_errors(path: str, body: dict[str, Any], server: Server) -> None:
    response: httpx.Response = server.http.post(path, json=body)
    assert 400 <= response.status_code < 500
    if path.startswith("/v1/messages"):
        check(anthropic.types.ErrorResponse, response.json())
        return
    assert set(response.json()) == {"error"}
    check(openai.types.shared.ErrorObject, response.json()["error"])
