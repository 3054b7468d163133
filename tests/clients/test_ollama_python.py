"""Ollama's Python client, synchronous and asynchronous, against a running server: each public method."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

from tests.support.server import REPOSITORY, Server
from tests.support.tiny_models import make_model, write_tokenizer

DEMO = REPOSITORY / "python_runner" / "ollmlx" / "models" / "demo"
GREEDY = {"temperature": 0}
QUESTION = "What is ollmlx?"
ANSWER = "local model server for MLX"
# A PNG of one pixel.
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def get_weather(city: str) -> str:
    """Get the weather of a city

    Args:
        city: The city
    """
    return f"{city}: sunny, 24 degrees"


class Synchronous:
    """An asynchronous client that is used like the other one, so that each test runs with both."""

    def __init__(self, client: ollama.AsyncClient) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await getattr(self.client, method)(*args, **kwargs)
            return [part async for part in result] if hasattr(result, "__aiter__") else result

        return lambda *args, **kwargs: self.loop.run_until_complete(call(*args, **kwargs))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    if request.param == "sync":
        with ollama.Client(host=server.url) as client:
            yield client
        return
    client = Synchronous(ollama.AsyncClient(host=server.url))
    yield client
    client.loop.run_until_complete(client.client.close())
    client.loop.close()


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def test_generate(client: Any) -> None:
    answer = client.generate("demo", QUESTION, think=False, options=GREEDY)
    assert ANSWER in answer.response
    assert (answer.model, answer.done, answer.done_reason, answer.thinking) == ("demo", True, "stop", None)
    assert answer.prompt_eval_count > 5
    assert answer.eval_count > 10
    assert answer.prompt_eval_duration > 0
    assert answer.total_duration >= answer.load_duration + answer.eval_duration
    parts = list(client.generate("demo", QUESTION, think=False, options=GREEDY, stream=True))
    assert "".join(p.response for p in parts) == answer.response
    assert len(parts) > 5
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == answer.eval_count
    assert parts[-1].context == answer.context


def test_generate_goes_on_from_a_context(client: Any) -> None:
    first = client.generate("demo", "Hello", think=False, options=GREEDY)
    second = client.generate("demo", QUESTION, context=first.context, think=False, options=GREEDY)
    assert second.context[: len(first.context)] == first.context
    assert second.prompt_eval_count > len(first.context)


def test_generate_raw_with_template_and_stop(client: Any) -> None:
    raw = "<|im_start|>user\nWhat is ollmlx?<|im_end|>\n<|im_start|>assistant\n"
    answer = client.generate("demo", raw, raw=True, options=GREEDY)
    assert ANSWER in answer.response
    assert answer.context is None
    cut = client.generate("demo", raw, raw=True, options=GREEDY | {"stop": [" server"]})
    assert cut.response == answer.response.partition(" server")[0]
    assert cut.done_reason == "stop"
    template = "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}"
    rendered = client.generate("demo", QUESTION, template=template, think=False, options=GREEDY)
    assert rendered.response == answer.response
    with pytest.raises(ollama.ResponseError, match="raw mode does not support template, system, or context"):
        client.generate("demo", raw, raw=True, system="x")


def test_options(client: Any) -> None:
    short = client.generate(
        "demo", QUESTION, think=False, options=ollama.Options(num_predict=3, temperature=0)
    )
    assert (short.eval_count, short.done_reason) == (3, "length")
    hot = ollama.Options(temperature=2.0, seed=7, top_k=100, top_p=1.0, num_predict=20)
    one, two = (client.generate("demo", QUESTION, think=False, options=hot).response for _ in range(2))
    assert one == two
    with pytest.raises(ollama.ResponseError, match='option "num_ctx" must be of type integer') as err:
        client.generate("demo", QUESTION, options={"num_ctx": "big"})
    assert err.value.status_code == 500


def test_system(client: Any) -> None:
    answer = client.generate("demo", QUESTION, system="Answer in JSON.", think=False, options=GREEDY)
    assert isinstance(json.loads(answer.response), dict)


def test_suffix_and_images_need_a_model_that_can(client: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="demo:latest does not support insert") as err:
        client.generate("demo", "def f(", "return 1")
    assert err.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="demo:latest does not support vision") as err:
        client.generate("demo", "What is this?", images=[IMAGE])
    assert err.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="does not support vision"):
        client.chat("demo", [user("What is this?", images=[IMAGE])])


def test_infill_with_a_model_that_can(client: Any, server: Server, tmp_path: Path) -> None:
    make_model(tmp_path, "llama", vocab_size=512)
    write_tokenizer(tmp_path, extra_tokens=["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    server.create("infill", tmp_path)
    try:
        assert "insert" in client.show("infill").capabilities
        options = GREEDY | {"num_predict": 8}
        one, two = (
            client.generate("infill", "def f(", s, options=options) for s in ("return 1", "return 2 or 3")
        )
        assert one.eval_count <= 8
        assert two.prompt_eval_count == one.prompt_eval_count + len(" or 3")
    finally:
        client.delete("infill")


def test_chat(client: Any) -> None:
    answer = client.chat("demo", [user(QUESTION)], think=False, options=GREEDY)
    assert answer.message.role == "assistant"
    assert ANSWER in answer.message.content
    assert answer.message.tool_calls is None
    parts = list(client.chat("demo", [user(QUESTION)], think=False, options=GREEDY, stream=True))
    assert "".join(p.message.content for p in parts) == answer.message.content
    assert len(parts) > 5
    assert parts[-1].done_reason == "stop"
    begun = client.chat(
        "demo", [user(QUESTION), {"role": "assistant", "content": "ollmlx is a"}], think=False, options=GREEDY
    )
    assert begun.message.content.startswith(" ")


def test_thinking(client: Any) -> None:
    whole = client.chat("demo", [user(QUESTION)], think=True, options=GREEDY)
    assert whole.message.thinking
    parts = list(client.chat("demo", [user(QUESTION)], think=True, options=GREEDY, stream=True))
    assert "".join(p.message.thinking or "" for p in parts) == whole.message.thinking
    assert "".join(p.message.content for p in parts) == whole.message.content
    generated = client.generate("demo", QUESTION, think="high", options=GREEDY)
    assert generated.thinking == whole.message.thinking
    # A model that can think does so unless it is told not to.
    assert client.chat("demo", [user(QUESTION)], options=GREEDY).message.thinking == whole.message.thinking


def test_tools(client: Any) -> None:
    messages = [user("What is the weather in Paris?")]
    answer = client.chat("demo", messages, tools=[get_weather], think=False, options=GREEDY)
    [call] = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    assert answer.done_reason == "stop"
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)}
    final = client.chat(
        "demo", [*messages, answer.message, result], tools=[get_weather], think=False, options=GREEDY
    )
    assert "24" in final.message.content
    parts = list(client.chat("demo", messages, tools=[get_weather], think=False, options=GREEDY, stream=True))
    [streamed] = [c for p in parts for c in p.message.tool_calls or []]
    assert streamed.function == call.function


class City(BaseModel):
    name: str
    inhabitants: int
    languages: list[str]


def test_structured_output(client: Any) -> None:
    """The demo model knows no cities; its answer has the form all the same."""
    options = {"temperature": 0, "num_predict": 500, "repeat_penalty": 1.3}
    schema = City.model_json_schema()
    schema["properties"]["name"]["maxLength"] = 20
    schema["properties"]["inhabitants"]["maximum"] = 100
    schema["properties"]["languages"] |= {"maxItems": 2, "items": {"enum": ["French", "English"]}}
    for think in (False, True):
        answer = client.chat("demo", [user("Tell me of Paris")], format=schema, think=think, options=options)
        city = City.model_validate_json(answer.message.content)
        assert set(city.languages) <= {"French", "English"}
        assert bool(answer.message.thinking) == think
    generated = client.generate("demo", "Tell me of Paris", format=schema, think=False, options=options)
    City.model_validate_json(generated.response)
    answer = client.chat(
        "demo", [user("Answer in JSON: what is ollmlx?")], format="json", think=False, options=GREEDY
    )
    assert isinstance(json.loads(answer.message.content), dict)


def test_logprobs(client: Any) -> None:
    fields = {"think": False, "options": GREEDY | {"num_predict": 5}, "logprobs": True, "top_logprobs": 3}
    whole = client.chat("demo", [user(QUESTION)], **fields)
    assert len(whole.logprobs) == 5
    assert "".join(t.token for t in whole.logprobs) == whole.message.content
    for token in whole.logprobs:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token
        assert token.logprob <= 0
    streamed = [
        t for p in client.chat("demo", [user(QUESTION)], stream=True, **fields) for t in p.logprobs or []
    ]
    assert [t.token for t in streamed] == [t.token for t in whole.logprobs]
    generated = client.generate("demo", QUESTION, **fields)
    assert [t.token for t in generated.logprobs] == [t.token for t in whole.logprobs]
    with pytest.raises(ollama.ResponseError, match="top_logprobs must be between 0 and 20"):
        client.generate("demo", QUESTION, logprobs=True, top_logprobs=21)


def test_embeddings(client: Any) -> None:
    answer = client.embed("demo", ["a server", "a server", "the weather"])
    one, two, other = answer.embeddings
    assert one == pytest.approx(two, abs=1e-5)
    assert one != pytest.approx(other, abs=1e-3)
    assert math.hypot(*one) == pytest.approx(1, abs=1e-3)
    assert answer.prompt_eval_count >= 6
    [small] = client.embed("demo", "a server", dimensions=16).embeddings
    assert len(small) == 16
    assert math.hypot(*small) == pytest.approx(1, abs=1e-3)
    assert client.embed("demo", []).embeddings == []
    old = client.embeddings("demo", "a server").embedding
    assert len(old) == len(one)
    with pytest.raises(ollama.ResponseError, match='model "nope" not found, try pulling it first'):
        client.embed("nope", "x")


def test_load_list_ps_and_unload(client: Any, server: Server) -> None:
    loaded = client.generate("demo", keep_alive="10m")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    [listed] = [m for m in client.list().models if m.model == "demo:latest"]
    [running] = [m for m in client.ps().models if m.model == "demo:latest"]
    assert listed.digest == running.digest
    assert listed.size > 1e6
    assert running.context_length > 0
    assert listed.details.format == server.format
    assert client.chat("demo", [], keep_alive=0).done_reason == "unload"


def test_show(client: Any) -> None:
    shown = client.show("demo")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.details.family == shown.modelinfo["general.architecture"]
    assert shown.modelfile.splitlines()[-1].startswith("FROM ")
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as err:
        client.show("nope")
    assert err.value.status_code == 404


def test_create_from_files_and_from_a_model(client: Any) -> None:
    digests = {path.name: client.create_blob(path) for path in DEMO.iterdir() if path.suffix != ".md"}
    steps = [
        p.status for p in client.create("org/made", files=digests, system="Answer in JSON.", stream=True)
    ]
    assert steps[-1] == "success"
    answer = client.generate("org/made", QUESTION, think=False, options=GREEDY)
    assert isinstance(json.loads(answer.response), dict)
    made = client.create(
        "derived",
        from_="org/made",
        system="Be brief.",
        parameters={"temperature": 0, "num_predict": 4, "stop": ["!"]},
        messages=[user("Hello"), {"role": "assistant", "content": "Hi"}],
        license=["one", "two"],
        template="{{ .Prompt }}",
    )
    assert made.status == "success"
    shown = client.show("derived")
    assert shown.license == "one\ntwo"
    assert shown.template == "{{ .Prompt }}"
    assert "Be brief." in shown.modelfile
    assert "num_predict                    4" in shown.parameters
    client.copy("derived", "Copies/derived:v1")
    assert {"derived:latest", "Copies/derived:v1", "org/made:latest"} <= {
        m.model for m in client.list().models
    }
    for name in ("derived", "copies/Derived:v1", "org/made"):
        assert client.delete(name).status == "success"
    assert not {"derived:latest", "org/made:latest"} & {m.model for m in client.list().models}
    with pytest.raises(ollama.ResponseError, match="model 'derived' not found") as err:
        client.delete("derived")
    assert err.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match='model "nope" not found'):
        client.copy("nope", "other")
    with pytest.raises(ollama.ResponseError, match="invalid model name"):
        client.create("a b", from_="demo")


def test_pull_of_a_model_that_is_here(client: Any) -> None:
    steps = list(client.pull("demo", stream=True))
    assert steps[-1].status == "success"
    assert any(s.digest and s.total == s.completed for s in steps)
    assert client.pull("demo").status == "success"


def test_push_of_a_model_that_is_not_here_fails(client: Any) -> None:
    with pytest.raises(ollama.ResponseError):
        client.push("nobody/nothing")
    with pytest.raises(ollama.ResponseError):
        list(client.push("nobody/nothing", stream=True))


def test_errors(client: Any) -> None:
    for call, prompt in ((client.chat, [user("Hi")]), (client.generate, "Hi")):
        with pytest.raises(ollama.ResponseError, match="model 'no-such-model' not found") as err:
            call("no-such-model", prompt)
        assert err.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.chat("no-such-model", [user("Hi")], stream=True))
    with pytest.raises(ollama.ResponseError, match="think"):
        client.chat("demo", [user("Hi")], think="hard")
