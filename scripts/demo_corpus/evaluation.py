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
CURRENT_WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather for a location",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    },
}
TIME_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the current time in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
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

# (messages as alternating user and assistant texts, expected words, options)
Prompt = tuple[tuple[str, ...], tuple[str, ...], dict]

_FALLBACK = ("small demonstration model and I do not know",)
_WEATHER = {"tools": [WEATHER_TOOL]}
_PIRATE = {"system": "Answer like a pirate."}

# The usual questions. The corpus holds most of them word for word.
PROMPTS: tuple[Prompt, ...] = (
    (("What is ollmlx?",), ("local model server for MLX", "Ollama, OpenAI and Anthropic"), {}),
    (("Can you tell me what ollmlx is",), ("local model server",), {}),
    (("how do I pull a model?",), ("ollmlx pull mlx-community/Qwen3-0.6B-4bit",), {}),
    (("How do I run a model?",), ("ollmlx run",), {}),
    (("How do I list my models?",), ("ollmlx list",), {}),
    (("how do i delete a model",), ("ollmlx rm",), {}),
    (("How do I create a model?",), ("Modelfile", "ollmlx create"), {}),
    (("How do I see which models are running?",), ("ollmlx ps",), {}),
    (("How do I start the server?",), ("ollmlx serve", "11434"), {}),
    (("How do I stop a model?",), ("ollmlx stop",), {}),
    (("What models can you run?",), ("MLX", "Llama"), {}),
    (("Who are you?",), ("I am the ollmlx demonstration model",), {}),
    (("What can you do?",), ("questions about ollmlx",), {}),
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
    (("What is the capital of France?",), ("Paris",), {}),
    (("My name is Ada.",), ("Ada",), {}),
    (("My name is Ada.", "Nice to meet you, Ada!", "What is my name?"), ("Ada",), {}),
    (("What is my name?",), ("not told me",), {}),
    (("What is ollmlx? Answer in JSON.",), ('{"name": "ollmlx"',), {}),
    (("Answer in JSON: what is ollmlx?",), ('{"name": "ollmlx"',), {}),
    (("Ollama is 22 years old and is busy saving the world. Respond using JSON",),
     ('"age": 22', '"available": false'), {}),
    (("Tell me about Canada. Respond using JSON",), ('"capital": "Ottawa"',), {}),
    (("Ada is 36 years old and lives in London. Answer in JSON.",),
     ('{"name": "Ada", "age": 36, "city": "London"}',), {}),
    (("List three colors. Answer in JSON.",), ('{"colors": [',), {}),
    (("What do you think about submarines?",), _FALLBACK, {}),
    (("Explain the theory of relativity",), _FALLBACK, {}),
    (("What is 2+2?",), _FALLBACK, {}),
    (("What is the weather in Paris?",), _FALLBACK, {}),
    (("What is the weather in Paris?",),
     ('{"name": "get_weather", "arguments": {"city": "Paris"}}',), _WEATHER),
    (("What is the weather in Tokyo?",), ('"city": "Tokyo"', "</think>", "<tool_call>"),
     _WEATHER | {"thinking": True}),
    (("What's the weather in Berlin and in Rome?",), ('"Berlin"', '"Rome"'), _WEATHER),
    (("What is 12 + 30?",), ('{"name": "add", "arguments": {"a": 12, "b": 30}}',),
     {"tools": [ADD_TOOL]}),
    (("What time is it in London?",), ('{"name": "get_time", "arguments": {"city": "London"}}',),
     {"tools": [WEATHER_TOOL, TIME_TOOL]}),
    (("Hello!",), ("Hello",), _WEATHER),
    (("What is the weather in Paris?", "<call>", "<result>18 degrees and sunny"),
     ("18 degrees", "sunny", "Paris"), _WEATHER),
    (("What is ollmlx?",), ("Arr", "local model server"), _PIRATE),
    (("What is ollmlx?",), ("local model server",), {"system": "You are a helpful assistant."}),
    (("Why is the sky blue?",), ("Rayleigh",), {"system": "You know the rules of the house."}),
)  # fmt: skip

# Natural phrasings that training never sees: the corpus leaves out any question that equals
# one of these, whatever its case and punctuation.
HELD_OUT: tuple[Prompt, ...] = (
    (("So what is ollmlx, exactly?",), ("local model server",), {}),
    (("hey, what's ollmlx?",), ("local model server",), {}),
    (("Could you tell me a little about ollmlx?",), ("local model server",), {}),
    (("I have never heard of ollmlx. What is it?",), ("local model server",), {}),
    (("Give me a short introduction to ollmlx.",), ("local model server",), {}),
    (("How can I download a new model?",), ("ollmlx pull",), {}),
    (("how would i fetch a model from hugging face",), ("ollmlx pull",), {}),
    (("What's the command for pulling a model?",), ("ollmlx pull",), {}),
    (("Hello! How do I install models?",), ("ollmlx pull",), {}),
    (("Which command downloads a model?",), ("ollmlx pull",), {}),
    (("How do I start chatting with a model?",), ("ollmlx run",), {}),
    (("Hi, how can I run a model please?",), ("ollmlx run",), {}),
    (("What do I type to run a model?",), ("ollmlx run",), {}),
    (("i'd like to talk to a model, how?",), ("ollmlx run",), {}),
    (("How can I list my models?",), ("ollmlx list",), {}),
    (("Show me the models I have installed.",), ("ollmlx list",), {}),
    (("which models do i have on this machine",), ("ollmlx list",), {}),
    (("Where do I see all my models?",), ("ollmlx list",), {}),
    (("please list all my models",), ("ollmlx list",), {}),
    (("How can I remove a model I don't need?",), ("ollmlx rm",), {}),
    (("how do i get rid of a model?",), ("ollmlx rm",), {}),
    (("What is the command to delete a model?",), ("ollmlx rm",), {}),
    (("Please tell me how to uninstall a model.",), ("ollmlx rm",), {}),
    (("How can I make my own model?",), ("ollmlx create",), {}),
    (("Good morning! How do I create a custom model?",), ("ollmlx create",), {}),
    (("how do i build a model from a Modelfile",), ("ollmlx create",), {}),
    (("What is a Modelfile for?",), ("recipe",), {}),
    (("Which models are in memory right now?",), ("ollmlx ps",), {}),
    (("how can I see what is running",), ("ollmlx ps",), {}),
    (("What does the ps command do?",), ("ollmlx ps",), {}),
    (("How can I launch the ollmlx server?",), ("ollmlx serve",), {}),
    (("What port does the server listen on?",), ("11434",), {}),
    (("Hey there!",), ("Hello!",), {}),
    (("hello hello",), ("Hello!",), {}),
    (("Good afternoon!",), ("Hello!",), {}),
    (("Hi ollmlx",), ("Hello!",), {}),
    (("Thank you so much!",), ("You are welcome",), {}),
    (("ok thanks",), ("You are welcome",), {}),
    (("Thanks for your help!",), ("You are welcome",), {}),
    (("bye for now",), ("Goodbye!",), {}),
    (("See you tomorrow!",), ("Goodbye!",), {}),
    (("Hello, who are you?",), ("I am the ollmlx demonstration model, a very small",), {}),
    (("What are you exactly?",), ("I am the ollmlx demonstration model, a very small",), {}),
    (("Does ollmlx have an OpenAI compatible API?",), ("three APIs",), {}),
    (("Can ollmlx run Gemma models?",), ("any MLX model",), {}),
    (("Could you please tell me a short story about a robot?",), ("train station",), {}),
    (("I want to hear a story about the moon.",), ("rolled off the sky",), {}),
    (("write a story about a dog",), ("lighthouse",), {}),
    (("Please write me a very long answer.",), ("First,", "end of the long answer"), {}),
    (("How do I bake bread?",), _FALLBACK, {}),
    (("Who won the football match yesterday?",), _FALLBACK, {}),
    (("Write a letter to my bank.",), _FALLBACK, {}),
    (("What is the population of Iceland?",), _FALLBACK, {}),
    (("How do I remove a stain from a shirt?",), _FALLBACK, {}),
    (("Tell me the weather in Madrid, please.",),
     ('{"name": "get_weather", "arguments": {"city": "Madrid"}}',), _WEATHER),
    (("Could you check what the weather is like in Oslo?",),
     ('{"name": "get_weather", "arguments": {"city": "Oslo"}}',), _WEATHER),
    (("How is the weather in Vienna right now?",),
     ('{"name": "get_current_weather", "arguments": {"location": "Vienna"}}',),
     {"tools": [CURRENT_WEATHER_TOOL]}),
    (("hi, what time is it in New York?",),
     ('{"name": "get_time", "arguments": {"city": "New York"}}',),
     {"tools": [TIME_TOOL, CURRENT_WEATHER_TOOL]}),
    (("Hi, how do I list models?",), ("ollmlx list",), _WEATHER),
    (("Why do cats purr?",), _FALLBACK, _WEATHER),
    (("Give me a JSON description of ollmlx.",), ('{"name": "ollmlx"',), {}),
    (("Bob is 41 years old and lives in Rome. Reply as JSON.",),
     ('{"name": "Bob", "age": 41, "city": "Rome"}',), {}),
    (("Name three fruits. Answer with JSON please.",), ('{"fruits": ["apple"',), {}),
    (("Which command shows me all my models?",), ("</think>", "ollmlx list"), {"thinking": True}),
    (("Hello!", "Hello! I am the ollmlx demonstration model. How can I help you?",
      "How would I remove models?"), ("ollmlx rm",), {}),
    (("How do I pull a model?", "To pull a model, type: ollmlx pull mlx-community/Qwen3-0.6B-4bit",
      "And how do I run that?"), ("ollmlx run",), {}),
    (("Tell me a joke.", "Why did the small model cross the road? It had only learned to say: the "
      "other side.", "Very funny, thank you!"), ("welcome",), {}),
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


def answer(model, tokenizer, texts: tuple[str, ...], options: dict, limit: int = 700) -> tuple[str, int]:
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


def right(text: str, expected: tuple[str, ...]) -> bool:
    """Whether an answer has all expected words."""
    return all(word in text for word in expected)


def evaluate(path: Path) -> None:
    """Answer all prompts with the model in ``path`` and print the answers and how many are right."""
    from mlx_lm import load

    model, tokenizer = load(str(path))
    started, total = time.perf_counter(), 0
    for title, prompts in (("usual", PROMPTS), ("held-out", HELD_OUT)):
        good = 0
        for texts, expected, options in prompts:
            text, tokens = answer(model, tokenizer, texts, options)
            total += tokens
            good += right(text, expected)
            notes = [key for key in options if key != "system"]
            notes += [repr(options["system"])] if "system" in options else []
            verdict = "ok  " if right(text, expected) else "BAD "
            print(f"\n{verdict} {' / '.join(texts)}  {' '.join(notes)}\n     {text!r}")
        print(f"\n{good} of {len(prompts)} {title} prompts as expected", flush=True)
    print(f"{total / (time.perf_counter() - started):.0f} tokens/s with prompts")
