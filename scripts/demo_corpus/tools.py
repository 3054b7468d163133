"""Function definitions, questions that need them, and their results."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from .skills import CITIES, NUMBERS, person_name
from .text import expand, invented_word


@dataclass(frozen=True)
class Call:
    """One function call with its JSON result and the sentence that reports it."""

    name: str
    arguments: dict
    result: str
    report: str


@dataclass(frozen=True)
class Tool:
    """A kind of function: how it may be named, asked for and reported.

    ``parameters`` maps each slot to its possible argument names and its JSON type.
    """

    kind: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    questions: tuple[str, ...]
    parameters: dict[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)


_PLACE = ("city", "city", "location", "location", "place", "town", "city_name")

TOOLS: tuple[Tool, ...] = (
    Tool(
        "weather",
        ("get_weather", "get_weather", "get_current_weather", "weather", "lookup_weather",
         "get_temperature", "get_current_temperature", "fetch_weather"),
        ("Get the [current |]weather [for|in|of] a [city|location|place][|.]",
         "Returns the weather[|.]", "[Current|Look up the] weather for a given [city|location]"),
        ("What is the [|current ]weather [in|for] {place}[?| today?| now?| right now?]",
         "What's the [weather|weather like|temperature] in {place}[?| today?| right now?]",
         "How is the weather in {place}[?| today?]",
         "[Is it|Will it be] [cold|warm|hot] in {place}?",
         "[Tell me|Check|Get] the [weather|temperature] in {place}.",
         "Weather in {place}[?|, please.]", "What is the temperature in {place}?"),
        {"place": (_PLACE, "string")},
    ),
    Tool(
        "time",
        ("get_time", "get_time", "get_current_time", "current_time", "clock", "time_in"),
        ("Get the [current |local |]time in a [city|location|place][|.]", "Returns the time[|.]"),
        ("What time is it in {place}[?| now?| right now?]",
         "What is the [|current |local ]time in {place}?",
         "[Tell me|Check|Get] the time in {place}."),
        {"place": (_PLACE, "string")},
    ),
    Tool(
        "add",
        ("add", "add", "add_numbers", "add_two_numbers", "sum", "plus"),
        ("Add two numbers[|.]", "Returns the sum of [two numbers|a and b][|.]"),
        ("What is {first} [+|plus] {second}?", "[Add|Please add] {first} and {second}.",
         "How much is {first} [+|plus] {second}?", "[Calculate|Compute] {first} + {second}.",
         "What is the sum of {first} and {second}?"),
        {"first": (("a", "a", "x", "first"), "number"),
         "second": (("b", "b", "y", "second"), "number")},
    ),
    Tool(
        "multiply",
        ("multiply", "multiply", "multiply_numbers", "product", "times"),
        ("Multiply two numbers[|.]", "Returns the product of two numbers[|.]"),
        ("What is {first} [*|times] {second}?",
         "[Multiply|Please multiply] {first} [by|and] {second}.",
         "How much is {first} times {second}?"),
        {"first": (("a", "a", "x", "first"), "number"),
         "second": (("b", "b", "y", "second"), "number")},
    ),
    Tool(
        "search",
        ("search", "web_search", "search_web", "find", "lookup"),
        ("Search the web[|.]", "Find [pages|documents] for a query[|.]"),
        ("[Search|Look|Please search] for {query}.", "[Search the web|Look it up][:| for:] {query}",
         "[Find|Look up] {query}."),
        {"query": (("query", "query", "q", "text"), "string")},
    ),
)  # fmt: skip

_BY_KIND = {tool.kind: tool for tool in TOOLS}

_VERBS = "get fetch lookup read check find show query my do run tell current local".split()
_NOUNS = {
    "weather": ("weather", "temperature", "forecast", "conditions"),
    "time": ("time", "clock", "hour", "time_zone"),
    "add": ("add", "sum", "addition", "plus"),
    "multiply": ("multiply", "product", "times"),
    "search": ("search", "web", "pages", "documents"),
}

_CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy")


@dataclass(frozen=True)
class Definition:
    """A tool as one conversation declares it: chosen names and the JSON schema."""

    tool: Tool
    name: str
    arguments: dict[str, str]
    extra: dict | None
    schema: dict


# The combinations that people use in their first test of function calling.
_USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "weather": (
        ("get_weather", "city"), ("get_weather", "city"), ("get_weather", "location"),
        ("get_current_weather", "location"), ("get_current_weather", "city"),
        ("get_temperature", "city"),
    ),
    "time": (
        ("get_time", "city"), ("get_current_time", "city"), ("get_current_time", "location"),
    ),
    "add": (("add", "a", "b"), ("add_two_numbers", "a", "b"), ("add_numbers", "a", "b")),
    "multiply": (("multiply", "a", "b"), ("multiply_numbers", "a", "b")),
    "search": (("search", "query"), ("web_search", "query")),
}  # fmt: skip


def define(tool: Tool, rng: random.Random, usual: bool = False) -> Definition:
    """Choose names and write the schema in one of the key orders that clients send.

    Args:
        usual: prefer the names that are used most, instead of as many as possible.
    """
    name = rng.choice(tool.names)
    if rng.random() < 0.5:  # names that cannot be guessed and have to be copied
        verb = rng.choice(_VERBS) if rng.random() < 0.7 else invented_word(rng)
        name = f"{verb}_{rng.choice(_NOUNS[tool.kind])}"
    arguments = {slot: rng.choice(names) for slot, (names, _) in tool.parameters.items()}
    if "second" in arguments:  # pairs belong together: a and b, x and y
        pair = rng.randrange(len(tool.parameters["first"][0]))
        arguments = {slot: names[pair] for slot, (names, _) in tool.parameters.items()}
    if usual and rng.random() < 0.8:
        name, *chosen = rng.choice(_USUAL[tool.kind])
        arguments = dict(zip(tool.parameters, chosen, strict=True))
    properties: dict[str, dict] = {}
    for slot, (_, kind) in tool.parameters.items():
        kind = rng.choice(("number", "integer")) if kind == "number" else kind
        properties[arguments[slot]] = {"type": kind}
        if rng.random() < 0.4:
            text = expand("[The|A|Name of the] [{0}|{0} to use|{1}]", rng)
            properties[arguments[slot]]["description"] = text.format(arguments[slot], slot)
    required = list(properties)
    extra = None
    if tool.kind == "weather" and rng.random() < 0.2:
        key = rng.choice(("format", "unit"))
        properties[key] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        if rng.random() < 0.6:
            required.append(key)
            extra = {key: "celsius"}
    parameters: dict = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        parameters["required"] = required
        if rng.random() < 0.4:
            parameters = {"type": "object", "required": required, "properties": properties}
    function: dict = {"name": name}
    if rng.random() < 0.85:
        function["description"] = expand(rng.choice(tool.descriptions), rng)
    function["parameters"] = parameters
    return Definition(tool, name, arguments, extra, {"type": "function", "function": function})


def _weather_result(place: str, rng: random.Random) -> tuple[str, str]:
    degrees, sky = rng.randint(-9, 39), rng.choice(_CONDITIONS)
    roll = rng.random()
    if roll < 0.3:
        result = json.dumps({"temperature": degrees, "condition": sky})
    elif roll < 0.5:
        key = rng.choice(("city", "location", "place"))
        result = json.dumps({key: place, "temperature": degrees, "condition": sky})
    elif roll < 0.65:
        result = rng.choice((f"{degrees} degrees and {sky}", f"{sky}, {degrees} degrees"))
    elif roll < 0.75:
        unit = rng.choice((" C", "°C", " degrees", "", "json"))
        number = f"{degrees}{unit}"
        if unit == "json":
            number = json.dumps({rng.choice(("temperature", "temp", "degrees")): degrees})
        return number, f"It is {degrees} degrees in {place}."
    elif roll < 0.85:
        return rng.choice((sky, json.dumps({"condition": sky}))), f"It is {sky} in {place}."
    else:
        result = rng.choice((f"{degrees}°C, {sky}", f"{sky}, {degrees}°C", f"{degrees} C {sky}"))
    return result, f"It is {degrees} degrees and {sky} in {place}."


def call(definition: Definition, rng: random.Random) -> tuple[str, Call]:
    """A question that needs ``definition`` and the call that answers it."""
    kind = definition.tool.kind
    slots: dict[str, object]
    spoken: dict[str, str] | None = None  # numbers written as words
    if kind in ("weather", "time"):
        place = rng.choice(CITIES) if rng.random() < 0.8 else invented_word(rng).capitalize()
        slots = {"place": place}
        if kind == "weather":
            result, report = _weather_result(place, rng)
        else:
            clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
            result = rng.choice((clock, clock, json.dumps({"time": clock})))
            report = f"It is {clock} in {place}."
    elif kind in ("add", "multiply"):
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        slots = {"first": a, "second": b}
        if rng.random() < 0.2:
            a, b = a % 11, b % 11
            slots = {"first": a, "second": b}
            spoken = {"first": NUMBERS[a], "second": NUMBERS[b]}
        value = a + b if kind == "add" else a * b
        result = rng.choice((str(value), str(value), json.dumps({"result": value})))
        report = f"The result is {value}."
    else:
        query = person_name(rng) if rng.random() < 0.3 else invented_word(rng)
        if rng.random() < 0.3:
            query = f"{query} {invented_word(rng)}"
        slots = {"query": query}
        found = " ".join(invented_word(rng) for _ in range(rng.randint(1, 3)))
        result, report = found, f"I found this: {found}"
    words = spoken or slots
    question = expand(rng.choice(definition.tool.questions), rng).format(**words)
    arguments = {definition.arguments[slot]: value for slot, value in slots.items()}
    arguments |= definition.extra or {}
    return question, Call(definition.name, arguments, result, report)


def two_places(definition: Definition, rng: random.Random) -> tuple[str, list[Call]]:
    """One question about two cities, answered by two calls in the same turn."""
    places = rng.sample(CITIES, 2)
    what = "weather" if definition.tool.kind == "weather" else "time"
    question = expand(
        f"[What is|What's|Tell me] the {what} in {{}} and [in |]{{}}[?|.]", rng
    ).format(*places)
    calls = []
    for place in places:
        arguments = {definition.arguments["place"]: place} | (definition.extra or {})
        if what == "weather":
            result, report = _weather_result(place, rng)
        else:
            clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
            result, report = clock, f"It is {clock} in {place}."
        calls.append(Call(definition.name, arguments, result, report))
    return question, calls


def toolbox(rng: random.Random, usual: bool = False) -> list[Definition]:
    """One to three tools of different kinds for one conversation."""
    number = rng.choice((1, 1, 1, 2, 2, 3))
    kinds = ["weather"] if number == 1 and rng.random() < 0.4 else None
    kinds = kinds or rng.sample(sorted(_BY_KIND), number)
    return [define(_BY_KIND[kind], rng, usual) for kind in kinds]
