"""Prompts on which a trained demonstration model is tried, with words its answer must hold."""

from __future__ import annotations

import time
from pathlib import Path

WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}
ADD_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


def _counted(last: int) -> str:
    return ", ".join(str(number) for number in range(1, last + 1))


def holds(text: str, expected: tuple[str, ...], options: dict) -> bool:
    """Whether an answer has the expected words, or is the expected text where it is short.

    Counting and repeating must also stop, which looking for words would not notice.
    """
    if options.get("exact"):
        return text == expected[0]
    return all(word in text for word in expected)


# (messages as alternating user and assistant texts, expected words, options)
PROMPTS: tuple[tuple[tuple[str, ...], tuple[str, ...], dict], ...] = (
    (("What is ollmlx?",), ("local model server", "Ollama, OpenAI and Anthropic"), {}),
    (("Can you tell me what ollmlx is",), ("local model server",), {}),
    (("how do I pull a model?",), ("ollmlx pull mlx-community/Qwen3-0.6B-4bit",), {}),
    (("How do I run a model?",), ("ollmlx run",), {}),
    (("How can I list my models?",), ("ollmlx list",), {}),
    (("how do i delete a model",), ("ollmlx rm",), {}),
    (("How do I create a model?",), ("Modelfile", "ollmlx create"), {}),
    (("What models can you run?",), ("MLX", "Llama"), {}),
    (("Who are you?",), ("demonstration model",), {}),
    (("Which APIs do you speak?",), ("Ollama", "OpenAI", "Anthropic"), {}),
    (("Why is the sky blue?",), ("scatters", "Rayleigh"), {}),
    (("why is the sky blue",), ("Rayleigh",), {"thinking": True}),
    (("Hello!",), ("Hello",), {}),
    (("Hi",), ("Hello",), {"thinking": True}),
    (("Thanks!",), ("welcome",), {}),
    (("Goodbye!",), ("Goodbye",), {}),
    (("Tell me a story.",), ("llama",), {}),
    (("Tell me a short story about a cat.",), ("grey cat", "bookshop"), {}),
    (("tell me a story about a robot",), ("robot", "train station"), {}),
    (("Tell me a story about the sea.",), ("sea", "moon"), {}),
    (("Write a long answer.",), ("First,", "Finally", "end of the long answer"), {}),
    (("Count from 1 to 5.",), (_counted(5),), {"exact": True}),
    (("Count from 1 to 20",), (_counted(20),), {"exact": True}),
    (("Count to 12",), (_counted(12),), {"exact": True}),
    (("What is 2+2?",), ("= 4",), {}),
    (("What is the capital of France?",), ("Paris",), {}),
    (("Repeat after me: banana",), ("banana",), {"exact": True}),
    (("Repeat after me: zorblat",), ("zorblat",), {"exact": True}),
    (("Say the word hello",), ("hello",), {}),
    (("My name is Ada.",), ("Ada",), {}),
    (("My name is Ada.", "Nice to meet you, Ada!", "What is my name?"), ("Ada",), {}),
    (
        ("My name is Bob", "Nice to meet you, Bob!", "Why is the sky blue?",
         "The sky is blue because of Rayleigh scattering.", "What's my name?"),
        ("Bob",), {},
    ),
    (("What is my name?",), ("not told me",), {}),
    (("What is ollmlx? Answer in JSON.",), ('{"name": "ollmlx"',), {}),
    (("Ollama is 22 years old and is busy saving the world. Respond using JSON",),
     ('"age": 22', '"available": false'), {}),
    (("Tell me about Canada. Respond using JSON",), ('"capital": "Ottawa"',), {}),
    (("Ada is 36 years old and lives in London. Answer in JSON.",),
     ('{"name": "Ada", "age": 36, "city": "London"}',), {}),
    (("List three colors. Answer in JSON.",), ('{"colors": [',), {}),
    (("What do you think about submarines?",), ("small demonstration model",), {}),
    (("Explain the theory of relativity",), ("small demonstration model",), {}),
    (("What is the weather in Paris?",), ("small demonstration model",), {}),
    (("What is the weather in Paris?",),
     ('{"name": "get_weather", "arguments": {"city": "Paris"}}',), {"tools": [WEATHER_TOOL]}),
    (("What is the weather in Tokyo?",), ('"city": "Tokyo"', "</think>", "<tool_call>"),
     {"tools": [WEATHER_TOOL], "thinking": True}),
    (("What's the weather in Berlin and in Rome?",), ("Berlin", "Rome"), {"tools": [WEATHER_TOOL]}),
    (("What is 12 + 30?",), ('{"name": "add", "arguments": {"a": 12, "b": 30}}',),
     {"tools": [ADD_TOOL]}),
    (("Please add 3 and 4",), ('"a": 3, "b": 4',), {"tools": [WEATHER_TOOL, ADD_TOOL]}),
    (("Hello!",), ("Hello",), {"tools": [WEATHER_TOOL]}),
    (("What is the weather in Paris?", "<call>", "<result>18 degrees and sunny"),
     ("18 degrees", "sunny", "Paris"), {"tools": [WEATHER_TOOL]}),
    (("What is ollmlx?",), ("Arr", "local model server"), {"system": "Answer like a pirate."}),
    (("What is ollmlx?",), ("local model server",), {"system": "You are a helpful assistant."}),
    (("Who are you?",), ("Mario",), {"system": "You are Mario."}),
    (("Why is the sky blue?",), ("banana",), {"system": "Always answer with the word banana."}),
    (("Why is the sky blue?",), ("Rayleigh",), {"system": "You know the rules of the house."}),
)  # fmt: skip


def chat(texts: tuple[str, ...]) -> list[dict]:
    """Alternating texts as messages; ``<call>`` and ``<result>`` stand for a tool turn."""
    messages: list[dict] = []
    for index, text in enumerate(texts):
        if text == "<call>":
            function = {"name": "get_weather", "arguments": {"city": "Paris"}}
            messages.append(
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": function}],
                }
            )
        elif text.startswith("<result>"):
            messages.append({"role": "tool", "content": text.removeprefix("<result>")})
        else:
            messages.append({"role": "assistant" if index % 2 else "user", "content": text})
    return messages


def answer(
    model, tokenizer, texts: tuple[str, ...], options: dict, limit: int = 700
) -> tuple[str, int]:
    """Greedy answer to a conversation and the number of its tokens."""
    from mlx_lm import stream_generate

    messages = chat(texts)
    if options.get("system"):
        messages.insert(0, {"role": "system", "content": options["system"]})
    prompt = tokenizer.apply_chat_template(
        messages,
        tools=options.get("tools"),
        add_generation_prompt=True,
        enable_thinking=options.get("thinking", False),
    )
    text, tokens = "", 0
    for response in stream_generate(model, tokenizer, prompt, max_tokens=limit):
        text += response.text
        tokens = response.generation_tokens
    return text, tokens


def evaluate(path: Path) -> bool:
    """Answer all prompts with the model in ``path``, print them, and tell whether all hold."""
    from mlx_lm import load

    model, tokenizer = load(str(path))
    good, total, started = 0, 0, time.perf_counter()
    for texts, expected, options in PROMPTS:
        text, tokens = answer(model, tokenizer, texts, options)
        total += tokens
        right = holds(text, expected, options)
        good += right
        notes = [key for key in options if key not in ("system", "exact")]
        notes += [repr(options["system"])] if "system" in options else []
        verdict = "ok  " if right else "BAD "
        print(f"\n{verdict} {' / '.join(texts)}  {' '.join(notes)}\n     {text!r}")
    seconds = time.perf_counter() - started
    print(f"\n{good} of {len(PROMPTS)} as expected, {total / seconds:.0f} tokens/s with prompts")
    return good == len(PROMPTS)
