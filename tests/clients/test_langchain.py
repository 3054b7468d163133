"""LangChain's Ollama integration against a running server with the demo model."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
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


@pytest.fixture
def model(server: Server) -> ChatOllama:
    return ChatOllama(
        model="demo", base_url=server.url, temperature=0, reasoning=False, validate_model_on_init=True
    )


def test_invoke(model: ChatOllama) -> None:
    answer = model.invoke(QUESTION)
    assert ANSWER in answer.content
    assert answer.response_metadata["done_reason"] == "stop"
    assert answer.usage_metadata["input_tokens"] > 5
    assert answer.usage_metadata["output_tokens"] > 10
    answer = model.invoke([SystemMessage("Answer in JSON."), HumanMessage(QUESTION)])
    assert answer.content.startswith("{")


def test_stream(model: ChatOllama) -> None:
    chunks = list(model.stream(QUESTION))
    assert len(chunks) > 5
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == model.invoke(QUESTION).content
    assert whole.usage_metadata["output_tokens"] > 10


async def test_async(model: ChatOllama) -> None:
    assert ANSWER in (await model.ainvoke(QUESTION)).content
    assert ANSWER in "".join([chunk.content async for chunk in model.astream(QUESTION)])


def test_batch(model: ChatOllama) -> None:
    one, two, three = model.batch([QUESTION, "Hello", QUESTION])
    assert one.content == three.content != two.content


def test_reasoning(model: ChatOllama) -> None:
    answer = model.invoke(QUESTION, reasoning=True)
    assert answer.additional_kwargs["reasoning_content"]
    assert "<think>" not in answer.content


def test_tools(model: ChatOllama) -> None:
    caller = model.bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    answer = caller.invoke([question])
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert "24" in caller.invoke([question, answer, result]).content
    streamed = [c for chunk in caller.stream([question]) for c in chunk.tool_calls]
    assert [(c["name"], c["args"]) for c in streamed] == [("get_weather", {"city": "Paris"})]


def test_structured_output(model: ChatOllama) -> None:
    verdict = model.with_structured_output(Verdict, method="json_schema").invoke(QUESTION)
    assert isinstance(verdict, Verdict)
    anything = {"title": "anything", "type": "object"}
    free = model.with_structured_output(anything, method="json_mode")
    assert isinstance(free.invoke("Answer in JSON: what is ollmlx?"), dict)


def test_completion_and_embeddings(server: Server) -> None:
    llm = OllamaLLM(model="demo", base_url=server.url, temperature=0, reasoning=False)
    assert ANSWER in llm.invoke(QUESTION)
    assert ANSWER in "".join(llm.stream(QUESTION))
    embeddings = OllamaEmbeddings(model="demo", base_url=server.url)
    one, two = embeddings.embed_documents(["a server", "the weather"])
    assert len(one) == len(two) == len(embeddings.embed_query("a server"))


def test_a_model_that_is_not_here(server: Server) -> None:
    with pytest.raises(ValueError, match="no-such-model"):
        ChatOllama(model="no-such-model", base_url=server.url, validate_model_on_init=True)


def test_history(model: ChatOllama) -> None:
    answer = model.invoke([HumanMessage("Hello"), AIMessage("Hello!"), HumanMessage(QUESTION)])
    assert ANSWER in answer.content
