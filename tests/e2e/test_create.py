"""Models that are made with the engine's help: quantized ones, and adapters on a base."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.support.demo import DEMO, WEATHER
from tests.support.server import Server
from tests.support.tiny_models import make_adapter, make_model, peft_adapter

QWEN = "qwen3-vl-thinking"
CAPITAL = {"prompt": "What is the capital of France?", "think": False, "options": {"temperature": 0}}


def test_a_quantized_model_answers_and_says_what_it_is(server: Server) -> None:
    modelfile = server.root / "Modelfile-quantized"
    modelfile.write_text(f"FROM {DEMO}\nSYSTEM You are terse.\n")
    done = server.cli("create", "quantized", "-f", str(modelfile), "-q", "int4")
    assert done.returncode == 0, done.stderr
    assert "quantizing F32 model to int4" in done.stdout + done.stderr
    shown = server.post("/api/show", model="quantized")
    assert shown["details"]["quantization_level"] == "4-bit"
    assert shown["model_info"]["general.quantization_bits"] == 4
    assert shown["system"] == "You are terse."
    sizes = {m["name"]: m["size"] for m in server.http.get("/api/tags").json()["models"]}
    assert sizes["quantized:latest"] < sizes["demo:latest"] / 3
    assert "Paris" in server.post("/api/generate", model="quantized", **CAPITAL)["response"]

    refused = server.cli("create", "again", "-f", "-", "-q", "int8", stdin="FROM quantized")
    assert refused.returncode == 1
    assert 'model "quantized" is quantized already (4-bit)' in refused.stderr


def test_progress_of_a_quantization_is_streamed(server: Server) -> None:
    with server.stream("/api/create", model="fp8", **{"from": "demo", "quantize": "MXFP8"}) as lines:
        seen = list(lines)
    bars = [m for m in seen if m["status"] == "quantizing F32 model to mxfp8" and "total" in m]
    assert bars[-1]["completed"] == bars[-1]["total"] > 0
    assert seen[-1] == {"status": "success"}
    assert server.post("/api/show", model="fp8")["details"]["quantization_level"] == "mxfp8"
    assert not any("convert" in p.cmdline() for p in server.runner_processes())


def test_hanging_up_ends_a_quantization_without_a_trace(server: Server, tmp_path: Path) -> None:
    big = make_model(tmp_path / "big", "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=3)
    server.create("big", big)
    with server.stream("/api/create", model="given-up", **{"from": "big", "quantize": "int8"}) as lines:
        assert next(m for m in lines if "total" in m)
        converters = [p for p in server.runner_processes() if "convert" in p.cmdline()]
        assert len(converters) == 1
    converters[0].wait(10)
    temporary = server.models / ".ollmlx" / "tmp"
    deadline = time.monotonic() + 10
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not list(temporary.iterdir())
    assert server.http.post("/api/show", json={"model": "given-up"}).status_code == 404


PROMPT = "Adapters change what is said. "


def greedy(model: Path, adapter: Path | None) -> str:
    """What mlx-lm itself says."""
    import mlx_lm

    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=str(adapter) if adapter else None)
    ids = tokenizer.encode(PROMPT)
    return tokenizer.decode([r.token for r in mlx_lm.stream_generate(loaded, tokenizer, ids, max_tokens=24)])


def test_models_with_adapters_share_the_runner_of_their_base(server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "base", "llama", endless=True, seed=5)
    adapters: dict[str, Path | None] = {
        "lora-base": None,
        "lora-one": make_adapter(tmp_path / "one", model, seed=1),
        "lora-two": make_adapter(tmp_path / "two", model, seed=2, dora=True),
    }
    server.create("lora-base", model)
    for name in ("lora-one", "lora-two"):
        modelfile = tmp_path / f"Modelfile-{name}"
        modelfile.write_text(f"FROM lora-base\nADAPTER ./{name.removeprefix('lora-')}\n")
        done = server.cli("create", name, "-f", str(modelfile))
        assert done.returncode == 0, done.stderr
    peft = peft_adapter(tmp_path / "peft", tmp_path / "two")
    server.create("lora-peft", model, f"ADAPTER {peft}")

    before = {p.pid for p in server.runner_processes()}
    expected = {name: greedy(model, path) for name, path in adapters.items()}
    assert len(set(expected.values())) == 3
    expected["lora-peft"] = expected["lora-two"]
    # Twice, so that every answer is also given after every other one, with prefixes in the cache.
    for name, text in [*expected.items(), *expected.items()]:
        answer = server.post(
            "/api/generate", model=name, prompt=PROMPT, raw=True,
            options={"temperature": 0, "num_predict": 24},
        )  # fmt: skip
        assert (answer["model"], answer["response"]) == (name, text)
    assert len({p.pid for p in server.runner_processes()} - before) == 1
    running = {m["name"].partition(":")[0] for m in server.http.get("/api/ps").json()["models"]}
    assert expected.keys() <= running

    shown = server.post("/api/show", model="lora-two")
    assert (shown["model_info"]["adapter.type"], shown["model_info"]["adapter.lora.rank"]) == ("dora", 4)
    assert shown["details"]["parent_model"] == "lora-base:latest"
    again = server.cli(
        "create", "lora-again", "-f", "-", stdin=server.cli("show", "--modelfile", "lora-two").stdout
    )
    assert again.returncode == 0, again.stderr
    assert server.post("/api/show", model="lora-again")["model_info"]["adapter.type"] == "dora"


def test_adapters_that_do_not_fit_are_refused(server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "base", "llama")
    other = make_model(
        tmp_path / "other", "llama", hidden_size=32, num_attention_heads=2, num_key_value_heads=1
    )
    make_adapter(tmp_path / "adapter", other)
    refused = server.cli(
        "create", "unfit", "-f", "-", stdin=f"FROM {model}\nADAPTER {tmp_path / 'adapter'}\n"
    )
    assert refused.returncode == 1
    assert "the adapter does not fit the model: it has incompatible tensors" in refused.stderr
    twice = f"FROM {model}\nADAPTER {tmp_path / 'adapter'}\nADAPTER {tmp_path / 'adapter'}\n"
    refused = server.cli("create", "unfit", "-f", "-", stdin=twice)
    assert "only one adapter is currently supported" in refused.stderr
    assert server.http.post("/api/show", json={"model": "unfit"}).status_code == 404


def test_a_renderer_and_its_parser_take_the_place_of_the_chat_template(server: Server) -> None:
    """The demo model's own format is that of Qwen, so that Ollama's renderer and parser for Qwen fit it."""
    done = server.cli("create", "rendered", "-f", "-", stdin=f"FROM demo\nRENDERER {QWEN}\nPARSER {QWEN}\n")
    assert done.returncode == 0, done.stderr
    options = {"temperature": 0}

    def ask(question: str, **fields: object) -> dict:
        messages = [{"role": "user", "content": question}]
        return server.post("/api/chat", model="rendered", messages=messages, options=options, **fields)[
            "message"
        ]

    answer = ask("What is the capital of France?")
    assert "Paris" in answer["content"]
    assert answer["thinking"]
    assert "<think>" not in answer["content"] + answer["thinking"]
    call = ask("What is the weather in Paris?", tools=[WEATHER])["tool_calls"][0]["function"]
    assert (call["name"], call["arguments"]) == ("get_weather", {"city": "Paris"})
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    answer = ask("Hello", format=schema)
    assert answer["thinking"]
    assert list(json.loads(answer["content"])) == ["n"]


def test_format_and_thinking_go_together_with_a_template(server: Server) -> None:
    template = (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}"
        "{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ if .Think }}<think>\n{{ end }}"
    )
    server.post("/api/create", model="templated", template=template, **{"from": "demo"})
    shown = server.post("/api/show", model="templated")
    assert "thinking" in shown["capabilities"]
    for think in (True, False):
        answer = server.post(
            "/api/generate",
            model="templated",
            prompt="Hello",
            think=think,
            format="json",
            options={"temperature": 0, "num_predict": 200},
        )
        assert bool(answer.get("thinking")) == think
        assert answer["response"].startswith("{")
