"""The official OpenAI client against a running server with the demo model."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from tests.support.demo import DEMO as DEMO_DIRECTORY
from tests.support.demo import WEATHER
from tests.support.server import Server
from tests.support.tiny_models import make_model

TOKENIZER = DEMO_DIRECTORY / "tokenizer.json"
DEMO: dict[str, Any] = {"model": "demo", "temperature": 0}
NO_THINKING = {"reasoning_effort": "none"}
QUESTION = "What is ollmlx?"
ANSWER = "local model server for MLX"
FLAT_WEATHER = {"type": "function", "strict": False, **WEATHER["function"]}


class Color(BaseModel):
    """Small enough for a model that knows no colors."""

    model_config = {"extra": "forbid"}
    name: str = Field(max_length=12)
    share: int = Field(ge=0, le=100)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bounded_weather() -> dict[str, Any]:
    """The tool for calls that the model would not make by itself: it might never end a city's name."""
    tool = copy.deepcopy(WEATHER)
    tool["function"]["parameters"]["properties"]["city"]["maxLength"] = 12
    return tool


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# chat completions ---------------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(**DEMO, **NO_THINKING, messages=[user(QUESTION)])
    assert chat.id.startswith("chatcmpl-")
    assert (chat.object, chat.model) == ("chat.completion", "demo")
    [choice] = chat.choices
    assert ANSWER in choice.message.content
    assert (choice.message.role, choice.message.tool_calls, choice.finish_reason) == (
        "assistant",
        None,
        "stop",
    )
    usage = chat.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    tokens = Tokenizer.from_file(str(TOKENIZER)).encode(choice.message.content).ids
    assert usage.completion_tokens == len(tokens) + 1, "the end-of-sequence token is counted"
    assert chat._request_id
    again = client.chat.completions.create(**DEMO, **NO_THINKING, messages=[user(QUESTION)])
    assert again.choices[0].message.content == choice.message.content
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < again.usage.prompt_tokens


def test_chat_streams_what_it_says_at_once(client: openai.OpenAI) -> None:
    request = {**DEMO, "messages": [user(QUESTION)]}
    whole = client.chat.completions.create(**request)
    chunks = list(
        client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    )
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert [d.role for d in deltas].count("assistant") == 1 and deltas[0].role == "assistant"
    assert len(deltas) > 15, "tokens come one by one"
    message = whole.choices[0].message
    assert "".join(d.content or "" for d in deltas) == message.content
    assert "".join(getattr(d, "reasoning", "") for d in deltas) == message.reasoning
    assert message.reasoning_content == message.reasoning
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert whole.usage.completion_tokens_details.reasoning_tokens > 0
    assert len({c.id for c in chunks}) == 1
    with client.chat.completions.stream(**request) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == message.content


async def test_chat_async_side_by_side(aclient: openai.AsyncOpenAI) -> None:
    request = {**DEMO, **NO_THINKING, "messages": [user(QUESTION)]}
    first, second = await asyncio.gather(*(aclient.chat.completions.create(**request) for _ in range(2)))
    assert first.choices[0].message.content == second.choices[0].message.content
    stream = await aclient.chat.completions.create(**request, stream=True)
    parts = [c.choices[0].delta.content or "" async for c in stream]
    assert "".join(parts) == first.choices[0].message.content


def test_chat_sampling(client: openai.OpenAI) -> None:
    def say(**fields: Any) -> Any:
        request = {**DEMO, **NO_THINKING, "messages": [user(QUESTION)], **fields}
        return client.chat.completions.create(**request).choices[0]

    short = say(max_completion_tokens=3)
    assert short.finish_reason == "length"
    assert say(max_tokens=3).message.content == short.message.content
    assert say(max_tokens=9, max_completion_tokens=3).message.content == short.message.content
    stopped = say(stop=" server")
    assert (stopped.message.content, stopped.finish_reason) == ("ollmlx is a local model", "stop")
    assert say(stop=["never said", " model"]).message.content == "ollmlx is a local"
    one, two = (say(temperature=1.5, seed=11).message.content for _ in range(2))
    assert one == two
    [first] = Tokenizer.from_file(str(TOKENIZER)).encode("ollmlx").ids[:1]
    assert not say(logit_bias={str(first): -100}).message.content.startswith("ollmlx")
    assert say(presence_penalty=2, frequency_penalty=2, top_p=0.5).message.content
    assert say(extra_body={"options": {"num_predict": 2}}).finish_reason == "length"


def test_chat_logprobs(client: openai.OpenAI) -> None:
    request = {**DEMO, **NO_THINKING, "messages": [user(QUESTION)], "max_tokens": 5}
    choice = client.chat.completions.create(**request, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert "".join(t.token for t in tokens) == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert bytes(token.bytes).decode() == token.token
    stream = client.chat.completions.create(**request, logprobs=True, stream=True)
    streamed = [t for c in stream if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert client.chat.completions.create(**request).choices[0].logprobs is None


def test_chat_tools(client: openai.OpenAI) -> None:
    messages: list[Any] = [user("What is the weather in Paris?")]
    request = {**DEMO, **NO_THINKING, "tools": [WEATHER]}
    choice = client.chat.completions.create(**request, messages=messages).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "24 degrees and sunny"},
    ]
    assert "24" in client.chat.completions.create(**request, messages=messages).choices[0].message.content
    with client.chat.completions.stream(**request, messages=messages[:1]) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert [(e.name, json.loads(e.arguments)) for e in done] == [("get_weather", {"city": "Paris"})]


def test_chat_tool_choice(client: openai.OpenAI) -> None:
    request = {**DEMO, **NO_THINKING, "tools": [WEATHER], "max_tokens": 200}
    bounded = {**request, "tools": [bounded_weather()]}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        # Not a question about the weather: without the choice there is no call.
        answer = client.chat.completions.create(**bounded, messages=[user(QUESTION)], tool_choice=choice)
        assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"
    asked = [user("What is the weather in Paris?")]
    answer = client.chat.completions.create(**request, messages=asked, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    single = client.chat.completions.create(**request, messages=asked, parallel_tool_calls=False)
    assert len(single.choices[0].message.tool_calls) == 1


def test_chat_structured_output(client: openai.OpenAI) -> None:
    request = {**DEMO, "messages": [user("Name a color")], "max_tokens": 300}
    parsed = client.chat.completions.parse(**request, **NO_THINKING, response_format=Color)
    assert isinstance(parsed.choices[0].message.parsed, Color)
    thought = client.chat.completions.parse(**request, response_format=Color)
    assert isinstance(thought.choices[0].message.parsed, Color)
    assert thought.choices[0].message.reasoning
    messages = [user("Answer in JSON: what is ollmlx?")]
    answer = client.chat.completions.create(
        **DEMO, **NO_THINKING, messages=messages, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def test_chat_forms_of_messages(client: openai.OpenAI) -> None:
    """Text as a string or as parts is the same prompt; a developer's message is a system prompt."""
    plain = client.chat.completions.create(**DEMO, **NO_THINKING, messages=[user(QUESTION)])
    parts = [{"type": "text", "text": QUESTION}]
    split = client.chat.completions.create(
        **DEMO, **NO_THINKING, messages=[{"role": "user", "content": parts}]
    )
    assert split.choices[0].message.content == plain.choices[0].message.content
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Answer in JSON."}, user(QUESTION)]
        answer = client.chat.completions.create(**DEMO, **NO_THINKING, messages=messages)
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"n": 2}, "n", "n of 2 is not supported"),
        ({"modalities": ["audio"]}, "modalities", "answers are text"),
        ({"temperature": "hot"}, "temperature", "temperature must be a number, got string"),
        ({"tool_choice": "required"}, "tool_choice", "tools is empty"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "response_format.type must be"),
        ({"messages": []}, "messages", "is too short - 'messages'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
            None,
            "the format cannot be honoured",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}],
                    }
                ]
            },
            "messages[0].content[0].image_url",
            "images are not fetched from addresses",
        ),
    ],
)
def test_chat_refuses_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str | None, text: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refusal:
            client.chat.completions.create(**{**DEMO, "messages": [user("x")], **fields}, stream=stream)
        assert text in refusal.value.message
        assert (refusal.value.param, refusal.value.type) == (param, "invalid_request_error")


# completions, embeddings, models ------------------------------------------------------------------------------


def test_completions(client: openai.OpenAI) -> None:
    request = {**DEMO, "prompt": QUESTION}
    whole = client.completions.create(**request, logprobs=2)
    assert (whole.object, whole.choices[0].finish_reason) == ("text_completion", "stop")
    text = whole.choices[0].text
    assert ANSWER in text
    logprobs = whole.choices[0].logprobs
    for token, offset, top in zip(logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True):
        assert text[offset : offset + len(token)] == token
        assert len(top) == 2
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert client.completions.create(**request, max_tokens=2).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="does not support insert"):
        client.completions.create(**request, suffix="x")


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["a server", "a server", "the weather"]
    answer = client.embeddings.create(model="demo", input=texts)  # the client asks for base64 by itself
    one, two, other = (e.embedding for e in answer.data)
    assert [e.index for e in answer.data] == [0, 1, 2]
    assert one == pytest.approx(two, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-3)
    assert math.hypot(*one) == pytest.approx(1, abs=1e-3)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3
    plain = client.embeddings.create(model="demo", input="a server", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(one, abs=1e-5)
    small = client.embeddings.create(model="demo", input="a server", dimensions=16)
    assert len(small.data[0].embedding) == 16
    with pytest.raises(openai.BadRequestError, match="input of token ids is not supported"):
        client.embeddings.create(model="demo", input=[[1, 2]])


def test_models(client: openai.OpenAI, server: Server, tmp_path: Path) -> None:
    server.create("Team/Tiny", make_model(tmp_path / "m", "llama"))
    try:
        listed = {m.id: m for m in client.models.list()}
        assert listed.keys() >= {"Team/Tiny:latest"}
        assert listed["Team/Tiny:latest"].owned_by == "Team"
        for name in ("Team/Tiny", "team/tiny:LATEST"):
            model = client.models.retrieve(name)
            assert (model.id, model.created) == (name, listed["Team/Tiny:latest"].created)
    finally:
        server.cli("rm", "Team/Tiny")
    with pytest.raises(openai.NotFoundError, match="model 'Team/Tiny' not found"):
        client.models.retrieve("Team/Tiny")


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.chat.completions.create(model="no/such", messages=[user("x")]),
        lambda c: c.completions.create(model="no/such", prompt="x"),
        lambda c: c.embeddings.create(model="no/such", input="x"),
        lambda c: c.responses.create(model="no/such", input="x"),
        lambda c: c.models.retrieve("no/such"),
    ],
)
def test_unknown_model(client: openai.OpenAI, call: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no/such") as refusal:
        call(client)
    assert refusal.value.type == "not_found_error"


# responses ----------------------------------------------------------------------------------------------------


def test_response(client: openai.OpenAI) -> None:
    response = client.responses.create(**DEMO, input=QUESTION, metadata={"a": "b"})
    assert response.id.startswith("resp_")
    assert (response.status, response.error, response.metadata) == ("completed", None, {"a": "b"})
    assert ANSWER in response.output_text
    reasoning, message = response.output
    assert (reasoning.type, message.type) == ("reasoning", "message")
    assert reasoning.summary[0].text == reasoning.encrypted_content
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens > 0
    short = client.responses.create(**DEMO, input=QUESTION, max_output_tokens=20)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    quick = client.responses.create(**DEMO, input=QUESTION, reasoning={"effort": "none"})
    assert [o.type for o in quick.output] == ["message"]
    assert json.loads(
        client.responses.create(
            **DEMO, instructions="Answer in JSON.", input=[user(QUESTION)], reasoning={"effort": "none"}
        ).output_text
    )


def test_response_stream(client: openai.OpenAI) -> None:
    whole = client.responses.create(**DEMO, input=QUESTION)
    events = list(client.responses.create(**DEMO, input=QUESTION, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    thought = "".join(e.delta for e in events if e.type == "response.reasoning_summary_text.delta")
    assert text == whole.output_text
    assert thought == whole.output[0].summary[0].text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == text
    assert events[-1].response.usage.output_tokens == whole.usage.output_tokens
    with client.responses.stream(**DEMO, input=QUESTION) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == text


async def test_response_async(aclient: openai.AsyncOpenAI) -> None:
    whole = await aclient.responses.create(**DEMO, input=QUESTION)
    async with aclient.responses.stream(**DEMO, input=QUESTION) as stream:
        text = [e.delta async for e in stream if e.type == "response.output_text.delta"]
    assert "".join(text) == whole.output_text


def test_response_tools(client: openai.OpenAI) -> None:
    """The whole output of a turn goes back as input, reasoning and all, since nothing is stored."""
    history: list[Any] = [user("What is the weather in Paris?")]
    request = {**DEMO, "tools": [FLAT_WEATHER]}
    first = client.responses.create(**request, input=history)
    [call] = [o for o in first.output if o.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    history += first.output
    history.append(
        {"type": "function_call_output", "call_id": call.call_id, "output": "24 degrees and sunny"}
    )
    assert "24" in client.responses.create(**request, input=history).output_text
    with client.responses.stream(**request, input=history[:1]) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
    assert [(e.name, json.loads(e.arguments)) for e in done] == [("get_weather", {"city": "Paris"})]
    forced = client.responses.create(
        **DEMO,
        tools=[{"type": "function", "strict": False, **bounded_weather()["function"]}],
        input=QUESTION,
        tool_choice={"type": "function", "name": "get_weather"},
    )
    assert forced.output[-1].name == "get_weather"


def test_response_structured_output(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(**DEMO, input="Name a color", text_format=Color, max_output_tokens=300)
    assert isinstance(parsed.output_parsed, Color)


def test_response_logprobs(client: openai.OpenAI) -> None:
    response = client.responses.create(
        **DEMO, input=QUESTION, reasoning={"effort": "none"}, max_output_tokens=5, top_logprobs=2
    )
    [part] = response.output[0].content
    assert "".join(t.token for t in part.logprobs) == part.text
    assert all(len(t.top_logprobs) == 2 for t in part.logprobs)


@pytest.mark.parametrize(
    "fields",
    [{"previous_response_id": "resp_1"}, {"store": True}, {"background": True}, {"conversation": "conv_1"}],
)
def test_response_is_stateless(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(**DEMO, input="x", **fields)
    assert [refusal.value.param] == list(fields)


def test_input_tokens(client: openai.OpenAI) -> None:
    request = {"model": "demo", "input": QUESTION, "instructions": "Be brief.", "tools": [FLAT_WEATHER]}
    counted = client.responses.input_tokens.count(**request).input_tokens
    assert client.responses.create(**request, max_output_tokens=1).usage.input_tokens == counted
    assert client.responses.input_tokens.count(model="demo", input=QUESTION).input_tokens < counted


def test_what_is_left_out_says_so(client: openai.OpenAI) -> None:
    sound = ("a.wav", b"RIFF")
    for call in (
        lambda: client.audio.transcriptions.create(model="demo", file=sound),
        lambda: client.audio.translations.create(model="demo", file=sound),
        lambda: client.audio.speech.create(model="demo", input="x", voice="x"),
        lambda: client.images.generate(model="demo", prompt="x"),
        lambda: client.images.edit(model="demo", prompt="x", image=("a.png", b"x")),
        lambda: client.images.create_variation(model="demo", image=("a.png", b"x")),
        lambda: client.moderations.create(model="demo", input="x"),
        lambda: client.responses.retrieve("resp_1"),
        lambda: client.responses.delete("resp_1"),
        lambda: client.responses.cancel("resp_1"),
        lambda: client.responses.input_items.list("resp_1"),
        lambda: client.responses.compact(model="demo", input="x"),
        lambda: client.chat.completions.retrieve("chatcmpl-1"),
        lambda: client.conversations.create(),
    ):
        with pytest.raises(openai.NotFoundError, match="is not offered: "):
            call()


# faults -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endless(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model whose answers do not end on their own."""
    server.create(
        "endless-openai", make_model(tmp_path_factory.mktemp("endless") / "m", "llama", endless=True)
    )
    yield "endless-openai"
    server.cli("rm", "endless-openai")


def kill_runner(server: Server, model: str) -> None:
    """End the runner of a model as a crash would."""
    killed = [p for p in server.runner_processes() if p.is_running()]
    for process in killed:
        process.kill()
    assert killed, f"{model} is not loaded"


def test_a_dead_runner_ends_a_stream_with_an_error(
    client: openai.OpenAI, server: Server, endless: str
) -> None:
    request = {"model": endless, "max_tokens": 1900}
    # A model whose runner has died twice is not started again at once.
    client = client.with_options(max_retries=6)
    stream = client.chat.completions.create(**request, messages=[user("go")], stream=True)
    next(stream)
    kill_runner(server, endless)
    with pytest.raises(openai.APIError, match="model runner has unexpectedly stopped"):
        list(stream)
    stream = client.completions.create(**request, prompt="go", stream=True)
    next(stream)
    kill_runner(server, endless)
    with pytest.raises(openai.APIError, match="model runner has unexpectedly stopped"):
        list(stream)
    stream = client.responses.create(model=endless, max_output_tokens=1900, input="go", stream=True)
    next(stream)
    kill_runner(server, endless)
    last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error.code == "server_error"
    assert "model runner has unexpectedly stopped" in last.response.error.message


def test_closing_a_stream_stops_its_work(client: openai.OpenAI, server: Server, endless: str) -> None:
    client = client.with_options(max_retries=6)
    for create, request in (
        (client.chat.completions.create, {"messages": [user("go")], "max_tokens": 1900}),
        (client.completions.create, {"prompt": "go", "max_tokens": 1900}),
        (client.responses.create, {"input": "go", "max_output_tokens": 1900}),
    ):
        with create(model=endless, stream=True, **request) as stream:
            next(iter(stream))
            assert server.runner_status().running == 1
        for _ in range(200):
            if not server.runner_status().running:
                break
        assert not server.runner_status().running


def test_stream_on_the_wire(server: Server) -> None:
    """Without a client in between: the stream as bytes."""
    body = {**DEMO, **NO_THINKING, "messages": [user(QUESTION)], "max_tokens": 2, "stream": True}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.headers["content-type"] == "text/event-stream"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    assert [c["choices"][0]["delta"] for c in chunks] == [
        {"role": "assistant", "content": "ollmlx"},
        {"content": " is"},
        {},
    ]
