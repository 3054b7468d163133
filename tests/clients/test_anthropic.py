"""The official Anthropic client against a running server with the demo model."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator

import anthropic
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from tests.support.server import Server

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city"}},
        "required": ["city"],
    },
}
# The client has no parameter for sampling any more; the API has.
DEMO = {"model": "demo", "max_tokens": 300, "extra_body": {"temperature": 0}}
QUESTION = "What is ollmlx?"


def user(text: str) -> dict:
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**DEMO, messages=[user(QUESTION)])
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    [block] = message.content
    assert block.type == "text"
    assert "local model server for MLX" in block.text
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 10
    assert message._request_id


def test_text_in_every_form(client: anthropic.Anthropic) -> None:
    """Text as a string or as blocks is the same prompt, a system prompt is another one."""
    blocks = [{"type": "text", "text": "What is ", "cache_control": {"type": "ephemeral"}}]
    blocks.append({"type": "text", "text": "ollmlx?"})
    plain = client.messages.create(**DEMO, messages=[user(QUESTION)])
    split = client.messages.create(**DEMO, messages=[{"role": "user", "content": blocks}])
    assert split.content[0].text == plain.content[0].text
    for system in ("Answer in JSON.", [{"type": "text", "text": "Answer in JSON."}]):
        answer = client.messages.create(**DEMO, system=system, messages=[user(QUESTION)])
        assert isinstance(json.loads(answer.content[0].text), dict)


async def test_async(aclient: anthropic.AsyncAnthropic) -> None:
    whole = await aclient.messages.create(**DEMO, messages=[user(QUESTION)])
    async with aclient.messages.stream(**DEMO, messages=[user(QUESTION)]) as stream:
        parts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert len(parts) > 5
    assert "".join(parts) == final.content[0].text == whole.content[0].text
    raw = await aclient.messages.create(**DEMO, messages=[user(QUESTION)], stream=True)
    assert [event.type async for event in raw][-1] == "message_stop"


def test_events_of_a_stream(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(**DEMO, messages=[user(QUESTION)], stream=True))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    start, delta = events[0].message, events[-2]
    assert start.content == []
    assert start.stop_reason is None
    assert delta.delta.stop_reason == "end_turn"
    assert start.usage.input_tokens == delta.usage.input_tokens + delta.usage.cache_read_input_tokens


def test_thinking(client: anthropic.Anthropic) -> None:
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}):
        message = client.messages.create(**DEMO, thinking=thinking, messages=[user(QUESTION)])
        thought, text = message.content
        assert (thought.type, text.type) == ("thinking", "text")
        assert thought.thinking
        assert thought.signature
        with client.messages.stream(**DEMO, thinking=thinking, messages=[user(QUESTION)]) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text"]
        assert (final.content[0].thinking, final.content[1].text) == (thought.thinking, text.text)
        assert {"thinking", "signature", "text"} <= kinds
    hidden = {"type": "adaptive", "display": "omitted"}
    thought, text = client.messages.create(**DEMO, thinking=hidden, messages=[user(QUESTION)]).content
    assert (thought.thinking, bool(thought.signature), bool(text.text)) == ("", True, True)
    for options in ({}, {"thinking": {"type": "disabled"}}):
        [only] = client.messages.create(**DEMO, **options, messages=[user(QUESTION)]).content
        assert only.type == "text"


def test_thinking_goes_back_with_its_turn(client: anthropic.Anthropic) -> None:
    question = user(QUESTION)
    first = client.messages.create(**DEMO, thinking={"type": "adaptive"}, messages=[question])
    again = client.messages.create(**DEMO, messages=[question, first.to_param(), user("Hello")])
    assert again.content[0].text


@pytest.mark.parametrize("thinking", [{"type": "disabled"}, {"type": "adaptive"}])
def test_tools_round_trip(client: anthropic.Anthropic, thinking: dict) -> None:
    options = {**DEMO, "tools": [WEATHER], "thinking": thinking}
    question = user("What is the weather in Paris?")
    with client.messages.stream(**options, messages=[question]) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert call.id.startswith("toolu_")
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    whole = client.messages.create(**options, messages=[question])
    assert (whole.stop_reason, whole.content[-1].input) == ("tool_use", call.input)
    for content in ("sunny, 24 degrees", [{"type": "text", "text": "sunny, 24 degrees"}]):
        result = {"type": "tool_result", "tool_use_id": call.id, "content": content}
        messages = [question, answer.to_param(), {"role": "user", "content": [result]}]
        final = client.messages.create(**options, messages=messages)
        assert final.stop_reason == "end_turn"
        assert "24" in final.content[-1].text


def test_tool_runner(client: anthropic.Anthropic) -> None:
    """The client's own loop of calls and results."""
    asked = []

    @beta_tool
    def get_weather(city: str) -> str:
        """Get the weather of a city

        Args:
            city: The city
        """
        asked.append(city)
        return "sunny, 24 degrees"

    runner = client.beta.messages.tool_runner(
        **DEMO, tools=[get_weather], messages=[user("What is the weather in Paris?")]
    )
    final = runner.until_done()
    assert asked == ["Paris"]
    assert "24" in final.content[-1].text


def test_tool_choice(client: anthropic.Anthropic) -> None:
    city = {
        **WEATHER["input_schema"],
        "properties": {"city": {"enum": ["Rome"]}},
        "additionalProperties": False,
    }
    tools = [{**WEATHER, "input_schema": city}, {"name": "get_time", "input_schema": city}]

    def answer(**choice: object) -> anthropic.types.Message:
        return client.messages.create(**DEMO, tools=tools, tool_choice=choice, messages=[user("Hello")])

    assert answer(type="auto").stop_reason == "end_turn"
    assert answer(type="any").stop_reason == "tool_use"
    for name in ("get_weather", "get_time"):
        message = answer(type="tool", name=name)
        [call] = message.content
        assert (message.stop_reason, call.name, call.input) == ("tool_use", name, {"city": "Rome"})
    assert len(answer(type="any", disable_parallel_tool_use=True).content) == 1
    question = user("What is the weather in Paris?")
    silent = client.messages.create(
        **DEMO, tools=[WEATHER], tool_choice={"type": "none"}, messages=[question]
    )
    assert [block.type for block in silent.content] == ["text"]


def test_structured_output(client: anthropic.Anthropic) -> None:
    class Project(BaseModel):
        languages: list[str]

    schema = Project.model_json_schema()
    schema["properties"]["languages"]["items"]["maxLength"] = 8
    schema["properties"]["languages"]["maxItems"] = 2
    form = {"format": {"type": "json_schema", "schema": schema}}
    text = client.messages.create(**DEMO, output_config=form, messages=[user(QUESTION)]).content[0].text
    assert len(Project.model_validate_json(text).languages) <= 2


def test_parsed_output(client: anthropic.Anthropic) -> None:
    class Project(BaseModel):
        name: str

    request = {**DEMO, "messages": [user(QUESTION)], "output_format": Project}
    assert isinstance(client.messages.parse(**request).parsed_output, Project)
    assert isinstance(client.beta.messages.parse(**request).parsed_output, Project)


def test_beta(client: anthropic.Anthropic) -> None:
    request = {**DEMO, "messages": [user(QUESTION)]}
    text = client.messages.create(**request).content[0].text
    assert client.beta.messages.create(**request).content[0].text == text
    with client.beta.messages.stream(**request) as stream:
        assert "".join(stream.text_stream) == text
    # A conversation that the server is asked to keep; told that it keeps none, the client sends all of it.
    thread = client.beta.messages.thread(**DEMO, unsupported_request_behavior="continue_unthreaded")
    assert thread.send(user(QUESTION)).content[0].text == text
    assert thread.send(user("Hello")).content[0].text


def test_models(client: anthropic.Anthropic) -> None:
    for listed in (list(client.models.list()), list(client.beta.models.list(limit=1))):
        assert "demo:latest" in [model.id for model in listed]
    model = client.models.retrieve("demo")
    assert (model.id, model.display_name, model.type) == ("demo", "demo:latest", "model")
    assert model.max_input_tokens > 0
    assert client.beta.models.retrieve("demo").id == "demo"
    with pytest.raises(anthropic.NotFoundError, match="model 'none' not found"):
        client.models.retrieve("none")
    with pytest.raises(anthropic.NotFoundError, match="is not offered: "):
        client.messages.batches.create(requests=[])


def test_stop_reasons(client: anthropic.Anthropic) -> None:
    options = {"model": "demo", "messages": [user(QUESTION)], "extra_body": {"temperature": 0}}
    cut = client.messages.create(**options, max_tokens=5)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
    stopped = client.messages.create(**options, max_tokens=300, stop_sequences=["nowhere", "server"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "server")
    assert stopped.content[0].text.endswith("model ")
    with client.messages.stream(**options, max_tokens=300, stop_sequences=["server"]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "server")
    assert final.content[0].text == stopped.content[0].text


def test_beginning_of_the_answer(client: anthropic.Anthropic) -> None:
    begun = [user(QUESTION), {"role": "assistant", "content": "ollmlx is a local"}]
    text = client.messages.create(**DEMO, messages=begun).content[0].text
    assert text.startswith(" model server")


def test_counts_are_true(client: anthropic.Anthropic) -> None:
    ask = {
        "model": "demo",
        "system": "Be brief.",
        "tools": [WEATHER],
        "messages": [user("Tell me something new.")],
    }
    counted = client.messages.count_tokens(**ask).input_tokens
    first = client.messages.create(**ask, max_tokens=20).usage
    assert first.input_tokens + first.cache_read_input_tokens == counted
    again = client.messages.create(**ask, max_tokens=20).usage
    assert again.cache_read_input_tokens > 0
    assert again.input_tokens + again.cache_read_input_tokens == counted
    longer = ask | {"messages": [user("Tell me something new, and then something else.")]}
    assert client.messages.count_tokens(**longer).input_tokens > counted
    beta = client.beta.messages.count_tokens(**ask)
    assert beta.input_tokens == counted


def test_errors(client: anthropic.Anthropic) -> None:
    def refused(kind: type[anthropic.APIStatusError], **changes: object) -> str:
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                client.messages.create(**DEMO | {"messages": [user("Hi")]} | changes, stream=stream)
        assert caught.value.request_id
        assert caught.value.body["type"] == "error"
        return caught.value.body["error"]["message"]

    assert refused(anthropic.NotFoundError, model="no-such") == "model 'no-such' not found"
    bad = anthropic.BadRequestError
    assert refused(bad, model="") == "model is required"
    assert refused(bad, max_tokens=0) == "max_tokens is required and must be positive"
    assert refused(bad, messages=[]) == "messages is required"
    search = [{"type": "web_search_20250305", "name": "web_search"}]
    assert "web_search_20250305" in refused(bad, tools=search)
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    assert "base64" in refused(bad, messages=[{"role": "user", "content": [image]}])
    pixel = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
    image = {"type": "image", "source": pixel}
    assert "does not support vision" in refused(bad, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.NotFoundError, match="not found"):
        client.messages.count_tokens(model="no-such", messages=[user("Hi")])


def test_a_client_that_leaves_ends_its_answer(server: Server, client: anthropic.Anthropic) -> None:
    options = {"model": "demo", "max_tokens": 100_000, "extra_body": {"temperature": 2}}
    with client.messages.stream(**options, messages=[user("Tell me everything.")]) as stream:
        next(iter(stream.text_stream))
    deadline = time.monotonic() + 10
    while server.runner_status().running:
        assert time.monotonic() < deadline, "the answer goes on"
        time.sleep(0.01)


def test_death_in_the_middle_is_an_error() -> None:
    with (
        Server() as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        # Nothing ends this answer but its bound.
        form = {"format": {"type": "json_schema", "schema": {"type": "array", "minItems": 10_000}}}
        with client.messages.stream(
            model="demo", max_tokens=100_000, output_config=form, messages=[user("Hi")]
        ) as stream:
            next(iter(stream.text_stream))
            for process in server.runner_processes():
                process.kill()
            with pytest.raises(anthropic.APIStatusError, match="model runner") as caught:
                stream.until_done()
        assert caught.value.body["error"]["type"] == "api_error"
        # The next request is served by a new runner.
        assert client.messages.create(**DEMO, messages=[user("Hello")]).content[0].text


def test_api_key() -> None:
    with Server(OLLMLX_API_KEY="first, second") as server:
        for options in ({"api_key": "first"}, {"api_key": "second"}, {"auth_token": "second"}):
            with anthropic.Anthropic(base_url=server.url, max_retries=0, **options) as client:
                assert client.messages.create(**DEMO, messages=[user("Hello")]).content[0].text
        with (
            anthropic.Anthropic(base_url=server.url, api_key="third", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError) as caught,
        ):
            client.messages.create(**DEMO, messages=[user("Hello")])
        assert caught.value.body["error"]["type"] == "authentication_error"
        assert server.http.get("/api/version").status_code == 200
        assert server.http.get("/api/tags").json()["error"].startswith("this server wants an API key")
        # Commands send the key of the environment.
        listed = server.cli("list")
        assert listed.returncode == 0, listed.stderr
        del server.environment["OLLMLX_API_KEY"]
        refused = server.cli("list")
        assert refused.returncode == 1
        assert "OLLMLX_API_KEY" in refused.stderr
