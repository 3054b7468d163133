"""LlamaIndex's Ollama integration against a running server with the demo model."""

from __future__ import annotations

from typing import Literal

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama
from pydantic import BaseModel

from tests.support.server import Server

QUESTION = "What is ollmlx?"
ANSWER = "local model server for MLX"


def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return f"{city}: sunny, 24 degrees"


class Verdict(BaseModel):
    """What to think of it."""

    name: Literal["ollmlx", "other"]
    good: bool


@pytest.fixture
def llm(server: Server) -> Ollama:
    return Ollama(model="demo", base_url=server.url, temperature=0.0, thinking=False, request_timeout=120)


@pytest.fixture
def question() -> list[ChatMessage]:
    return [ChatMessage(role="user", content=QUESTION)]


def test_metadata(llm: Ollama) -> None:
    assert llm.metadata.context_window > 0
    assert llm.metadata.is_function_calling_model


def test_complete(llm: Ollama) -> None:
    assert ANSWER in llm.complete(QUESTION).text
    *_, last = llm.stream_complete(QUESTION)
    assert ANSWER in last.text


def test_chat(llm: Ollama, question: list[ChatMessage]) -> None:
    answer = llm.chat(question)
    assert ANSWER in answer.message.content
    assert answer.raw["done_reason"] == "stop"
    parts = list(llm.stream_chat(question))
    assert len(parts) > 5
    assert "".join(p.delta for p in parts) == answer.message.content
    system = ChatMessage(role="system", content="Answer in JSON.")
    assert llm.chat([system, *question]).message.content.startswith("{")


async def test_async(llm: Ollama, question: list[ChatMessage]) -> None:
    assert ANSWER in (await llm.achat(question)).message.content
    assert ANSWER in (await llm.acomplete(QUESTION)).text
    parts = [part async for part in await llm.astream_chat(question)]
    assert ANSWER in parts[-1].message.content


def test_thinking(server: Server, question: list[ChatMessage]) -> None:
    llm = Ollama(model="demo", base_url=server.url, temperature=0.0, thinking=True, request_timeout=120)
    answer = llm.chat(question)
    assert any(getattr(block, "block_type", "") == "thinking" for block in answer.message.blocks)


def test_tools(llm: Ollama) -> None:
    weather = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([weather], user_msg="What is the weather in Paris?")
    [call] = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})


def test_structured_output(llm: Ollama, question: list[ChatMessage]) -> None:
    verdict = llm.as_structured_llm(Verdict).chat(question).raw
    assert isinstance(verdict, Verdict)
