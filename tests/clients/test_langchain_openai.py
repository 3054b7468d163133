"""LangChain's OpenAI integration against a running server with the demo model."""

from __future__ import annotations

from typing import Any, Literal

import httpx
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from tests.support.server import Server

QUESTION = "What is ollmlx?"
ANSWER = "local model server for MLX"


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return f"{city}: sunny, 24 degrees"


class Verdict(BaseModel):
    name: Literal["ollmlx", "other"]
    good: bool


@pytest.fixture(params=["chat completions", "responses"])
def model(request: pytest.FixtureRequest, server: Server) -> ChatOpenAI:
    responses = request.param == "responses"
    fields: dict[str, Any] = {} if responses else {"reasoning_effort": "none", "stream_usage": True}
    return ChatOpenAI(
        model="demo",
        base_url=f"{server.url}/v1",
        api_key="none",
        temperature=0,
        max_retries=0,
        use_responses_api=responses,
        # Its own one is kept beyond the event loop of a test.
        http_async_client=httpx.AsyncClient(trust_env=False),
        **fields,
    )


def test_invoke(model: ChatOpenAI) -> None:
    answer = model.invoke(QUESTION)
    assert ANSWER in answer.text
    assert answer.usage_metadata["output_tokens"] > 10


def test_stream(model: ChatOpenAI) -> None:
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 5
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert ANSWER in whole.text
    assert whole.usage_metadata["output_tokens"] > 10


async def test_async(model: ChatOpenAI) -> None:
    answer = await model.ainvoke(QUESTION)
    assert ANSWER in answer.text


def test_tools(model: ChatOpenAI) -> None:
    with_tools = model.bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    asked = with_tools.invoke([question])
    [call] = asked.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert "24" in with_tools.invoke([question, asked, result]).text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: ChatOpenAI, method: Literal["json_schema", "function_calling"]) -> None:
    assert isinstance(model.with_structured_output(Verdict, method=method).invoke(QUESTION), Verdict)


def test_completion(server: Server) -> None:
    model = OpenAI(model="demo", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_retries=0)
    assert ANSWER in model.invoke(QUESTION)
    assert ANSWER in "".join(model.stream(QUESTION))


def test_embeddings(server: Server) -> None:
    fields: dict[str, Any] = {"model": "demo", "base_url": f"{server.url}/v1", "api_key": "none"}
    one, two = OpenAIEmbeddings(**fields, check_embedding_ctx_length=False).embed_documents(
        ["a", "the weather"]
    )
    assert len(one) == len(two) > 16
    assert one != two
