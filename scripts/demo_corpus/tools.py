"""Function definitions, questions that need them, and their results."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from .skills import CITIES
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


_PLACE = ("city", "city", "city", "location", "location", "place")
_NOW = "[|| today| now| right now| at the moment| currently]"

TOOLS: tuple[Tool, ...] = (
    Tool(
        "weather",
        ("get_weather", "get_weather", "get_weather", "get_current_weather", "get_current_weather",
         "get_temperature", "get_current_temperature", "weather", "fetch_weather", "lookup_weather"),
        ("[Get|Gets|Returns|Look up|Fetch] the [current |][weather|temperature] "
         "[for|in|of|at] [a|the|a given] [city|location|place][|.]",
         "Returns the weather[|.]", "[Current|Look up the] weather for a given [city|location]",
         "Get the [current ]weather[|.]"),
        (f"[What is|What's|How is] the [|current ]weather [in|for|in] {{place}}{_NOW}?",
         f"[What is|What's] the [weather|weather like|temperature|forecast] in {{place}}{_NOW}?",
         f"What [is the weather|will the weather be] like in {{place}}{_NOW}?",
         "What is the weather in {place}?",
         "[Is it|Will it be] [cold|warm|hot|raining|sunny|windy] in {place}{_NOW}?",
         "[Tell me|Check|Get|Look up|Find out|Show me|Give me] the [current |]"
         "[weather|temperature] [in|for|of] {place}.",
         "[Can|Could] you [tell me|check|find|look up|get] the [weather|temperature] in {place}?",
         "[Can|Could] you [tell me|check|say] [how|what] the weather is[| like] in {place}?",
         "[How warm|How cold|How hot] is it in {place}{_NOW}?",
         "Do I need [an umbrella|a coat] in {place}{_NOW}?",
         "Weather in {place}?", "{place} weather?", "I want to know the weather in {place}.",
         "And [what about|how about|in] {place}?"),
        {"place": (_PLACE, "string")},
    ),
    Tool(
        "time",
        ("get_time", "get_time", "get_time", "get_current_time", "get_current_time", "current_time"),
        ("[Get|Gets|Returns|Look up|Tell] the [current |local |]time [in|of|for] "
         "[a|the|a given] [city|location|place][|.]", "Returns the time[|.]", "Current [local ]time"),
        ("What time is it in {place}[||| now| right now]?",
         "What time is it[| now| right now] in {place}?",
         "[What is|What's] the [|current |local ]time in {place}[|| now| right now]?",
         "[Tell me|Check|Get|Look up|Show me] the [|current |local ]time [in|for] {place}.",
         "[Can|Could] you [tell me|check|get] [the time|what time it is] in {place}?",
         "How late is it in {place}?", "Time in {place}?"),
        {"place": (_PLACE, "string")},
    ),
    Tool(
        "add",
        ("add", "add", "add_numbers", "add_two_numbers", "add_two_numbers"),
        ("[Add|Adds|Sum] [two|the] numbers[|.]", "Returns the sum of [two numbers|a and b][|.]",
         "Add [two|2] numbers together[|.]"),
        ("What [is|'s] {first}[ + | plus | + |+]{second}?", "[Add|Add up|Sum] {first} and {second}.",
         "How much is {first}[ + | plus |+]{second}?", "[Calculate|Compute] {first}[ + |+]{second}.",
         "What is the sum of {first} and {second}?", "[Can|Could] you add {first} and {second}?"),
        {"first": (("a", "a", "a", "x"), "number"), "second": (("b", "b", "b", "y"), "number")},
    ),
)  # fmt: skip

_BY_KIND = {tool.kind: tool for tool in TOOLS}

# Functions that the model has no questions for. They stand beside the others, so that a list of
# functions alone is no reason for a call.
_STRANGERS = (
    ("search", "Search the web", "query"), ("get_stock_price", "Price of a stock", "symbol"),
    ("send_email", "Send an email", "to"), ("play_music", "Play a song", "title"),
    ("get_news", "Get the news", "topic"), ("read_file", "Read a file", "path"),
    ("translate", "Translate a text", "text"), ("turn_on_light", "Turn on a light", "room"),
)  # fmt: skip

_CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear", "stormy")


@dataclass(frozen=True)
class Definition:
    """A tool as one conversation declares it: chosen names and the JSON schema."""

    tool: Tool
    name: str
    arguments: dict[str, str]
    extra: dict | None
    schema: dict


def stranger(rng: random.Random) -> dict:
    """The schema of a function that is never called."""
    name, description, argument = rng.choice(_STRANGERS)
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def define(tool: Tool, rng: random.Random) -> Definition:
    """Choose names and write the schema in one of the key orders that clients send."""
    name = rng.choice(tool.names)
    arguments = {slot: rng.choice(names) for slot, (names, _) in tool.parameters.items()}
    if "second" in arguments:  # pairs belong together: a and b, x and y
        pair = rng.randrange(len(tool.parameters["first"][0]))
        arguments = {slot: names[pair] for slot, (names, _) in tool.parameters.items()}
    properties: dict[str, dict] = {}
    for slot, (_, kind) in tool.parameters.items():
        kind = rng.choice(("number", "integer")) if kind == "number" else kind
        properties[arguments[slot]] = {"type": kind}
        if rng.random() < 0.4:
            text = expand("[The|The|A|Name of the|The name of the] [{0}|{0}|{0} to use|{1}][||.]", rng)
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
    if kind in ("weather", "time"):
        place = rng.choice(CITIES) if rng.random() < 0.93 else invented_word(rng).capitalize()
        slots = {"place": place}
        result, report = _result(kind, place, rng)
    else:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        slots = {"first": a, "second": b}
        result = rng.choice((str(a + b), str(a + b), json.dumps({"result": a + b})))
        report = f"The result is {a + b}."
    pattern = rng.choice(definition.tool.questions).replace("{_NOW}", _NOW)
    question = expand(pattern, rng).replace(" 's", "'s").format(**slots)
    arguments = {definition.arguments[slot]: value for slot, value in slots.items()}
    arguments |= definition.extra or {}
    return question, Call(definition.name, arguments, result, report)


def _result(kind: str, place: str, rng: random.Random) -> tuple[str, str]:
    """What the function answers for a place, and the sentence that reports it."""
    if kind == "weather":
        return _weather_result(place, rng)
    clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    return rng.choice((clock, clock, json.dumps({"time": clock}))), f"It is {clock} in {place}."


def two_places(definition: Definition, rng: random.Random) -> tuple[str, list[Call]]:
    """One question about two cities, answered by two calls in the same turn."""
    places = rng.sample(CITIES, 2)
    what = "weather" if definition.tool.kind == "weather" else "time"
    question = expand(
        f"[What is|What's|Tell me|Check|Compare] the {what} in {{}} and [in |]{{}}[?|.]", rng
    ).format(*places)
    calls = []
    for place in places:
        arguments = {definition.arguments["place"]: place} | (definition.extra or {})
        calls.append(Call(definition.name, arguments, *_result(what, place, rng)))
    return question, calls


@dataclass(frozen=True)
class Toolbox:
    """The functions that one conversation declares."""

    known: list[Definition]
    schemas: list[dict]


def toolbox(rng: random.Random) -> Toolbox:
    """Up to three tools of different kinds, sometimes with one that is never called."""
    number = rng.choice((1, 1, 1, 1, 2, 2, 3))
    kinds = rng.sample(("weather", "time", "add"), number)
    if number == 1:
        kinds = rng.choices(("weather", "time", "add"), (6, 3, 2))
    known = [define(_BY_KIND[kind], rng) for kind in kinds]
    schemas = [definition.schema for definition in known]
    if rng.random() < 0.12:
        schemas.insert(rng.randint(0, len(schemas)), stranger(rng))
    return Toolbox(known, schemas)
