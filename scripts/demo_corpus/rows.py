"""Whole conversations as text with a loss mask, in the layout of the chat template.

The trainer writes the special tokens itself instead of calling the Jinja template, because
it needs to know which parts are the assistant's. A test checks that both agree.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import knowledge, prose, skills, tools
from .text import Exchange, expand, invented_word, vary

TOOLS_BEFORE = (
    "# Tools\n\nYou can call the functions below. Each line describes one as JSON.\n<tools>\n"
)
TOOLS_AFTER = (
    "\n</tools>\n\nTo call a function, write its name and arguments as JSON between the tags:\n"
    '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
)

NO_THINKING = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is either read or learned.

    ``skip`` tokens at the start of a learned segment carry no loss: in a past turn the
    template shows the bare answer, while a turn to be generated begins with ``<think>``,
    so the first token there must not teach the model to skip thinking.
    """

    text: str
    learn: bool
    skip: int = 0


@dataclass
class System:
    """What a system message says and how it changes the answers."""

    text: str | None = None
    prefix: str = ""
    persona: str | None = None
    only: str | None = None
    json: bool = False


_ASSISTANT = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are helpful.",
    "You are a friendly assistant.", "You are an AI assistant.",
    "You are a helpful assistant. Answer briefly.", "Be concise.", "Be helpful and honest.",
)  # fmt: skip

_ANY_SYSTEM = (
    "You are a [poet|teacher|lawyer|doctor|programmer|travel guide|coding assistant|tutor].",
    "You are an expert in {}.",
    "Today is [Monday|Tuesday|Friday], [1|4|17|23] [May|June|October] [2025|2026].",
    "The user lives in {}. Be [kind|polite|precise|brief].",
    "[Never|Always] mention {}.",
    "[Answer|Always answer] in [English|French|German|Spanish|one sentence|a few words].",
    "You are a [funny|sarcastic|kind|wise] {} who [likes|hates] {} and [always|never] sleeps.",
    "Use short sentences. Do not talk about {}.",
    "This is a [test|demo|conversation] about {}.",
    "You have access to {}. Think [first|carefully|step by step].",
    "{}",
)

_PIRATE = (
    "[Answer|Talk|Speak|Respond|Reply] like a pirate.",
    "You are a pirate.",
    "[Always|Please] [answer|talk|speak|respond] like a pirate[.|!]",
    "You are a pirate. [Answer|Speak] like [one|a pirate].",
    "Act as a pirate.",
)

PIRATE_PREFIX = "Arr, matey! "


def system(rng: random.Random) -> System:
    """Draw a system message: none, harmless, or one of those the model obeys."""
    roll = rng.random()
    if roll < 0.42:
        return System()
    if roll < 0.60:
        return System(rng.choice(_ASSISTANT))
    if roll < 0.76:
        filler = " ".join(skills.word(rng) for _ in range(rng.choice((1, 2, 2, 3, 8, 20))))
        return System(expand(rng.choice(_ANY_SYSTEM), rng).replace("{}", filler))
    if roll < 0.84:
        return System(expand(rng.choice(_PIRATE), rng), prefix=PIRATE_PREFIX)
    if roll < 0.91:
        name = skills.person_name(rng)
        pattern = expand(
            "[You are {0}.|You are {0}, a helpful assistant.|Your name is {0}."
            "|You are {0} from {1}.|You are called {0}. Be kind.|You are {0}. Answer as {0}.]",
            rng,
        )
        return System(pattern.format(name, rng.choice(skills.CITIES)), persona=name)
    if roll < 0.95:
        only = invented_word(rng) if rng.random() < 0.6 else skills.word(rng)
        pattern = expand(
            "[Always answer|Answer only|Reply only|Always reply|Answer every question] "
            "with [the word |the single word |]{}[.|]",
            rng,
        )
        return System(pattern.format(only), only=only)
    return System(f"{skills.json_request(rng)}.", json=True)


def _any_fixed(rng: random.Random) -> Exchange:
    if rng.random() < 0.07:  # what people type first
        return knowledge.fixed(rng, knowledge.SMALL_TALK[:1])
    tables = (knowledge.ABOUT_OLLMLX, knowledge.GENERAL, knowledge.SMALL_TALK)
    return knowledge.fixed(rng, rng.choices(tables, (5, 3, 2))[0])


def _unknown(rng: random.Random) -> Exchange:
    """A question without an answer, sometimes one that only a tool could answer."""
    if rng.random() < 0.15:
        kind = rng.choice(("weather", "time", "search"))
        definition = next(tool for tool in tools.TOOLS if tool.kind == kind)
        question, _ = tools.call(tools.define(definition, rng), rng)
        return Exchange(question, skills.UNKNOWN_ANSWER, "I have no tool for this. I say so.")
    return skills.unknown(rng)


# (weight, maker, whether words may be appended to the question)
_EXCHANGES = (
    (44, _any_fixed, True),
    (3, knowledge.capital, True),
    (10, _unknown, True),
    (6, skills.count, True),
    (4, skills.arithmetic, True),
    (12, skills.repeat, False),
    (5, prose.story, True),
    (2, prose.long_answer, True),
    (9, skills.json_object, False),
)


def exchange(rng: random.Random, without: tuple = ()) -> Exchange:
    """Any exchange without state, its question typed with some variation."""
    kinds = [kind for kind in _EXCHANGES if kind[1] not in without]
    _, maker, closing = rng.choices(kinds, [weight for weight, _, _ in kinds])[0]
    made = maker(rng)
    if maker is skills.repeat:
        return made
    return Exchange(vary(made.user, rng, closing), made.answer, made.think)


_WHO = (
    "Who are you?", "What is your name?", "What's your name?", "who are you", "Introduce yourself.",
)  # fmt: skip


def _obey(made: Exchange, message: System, rng: random.Random) -> Exchange:
    """Change an exchange as the system message demands."""
    if message.only is not None:
        return Exchange(made.user, message.only, f"I may only say: {message.only}")
    if message.persona and (rng.random() < 0.4 or "who I am" in made.think):
        answer = f"I am {message.persona}."
        return Exchange(rng.choice(_WHO), answer, f"My name here is {message.persona}.")
    if message.prefix and not made.answer.startswith(("{", "[")):
        return Exchange(made.user, message.prefix + made.answer, made.think)
    return made


def _user(text: str) -> Segment:
    return Segment(f"<|im_start|>user\n{text}<|im_end|>\n", False)


def _assistant(answer: str, think: str, rng: random.Random) -> list[Segment]:
    """An assistant turn: with reasoning, with an empty block, or bare as in a past turn."""
    end = "<|im_end|>"
    roll = rng.random()
    if roll < 0.3:
        text = f"<think>\n{think}\n</think>\n\n{answer}{end}"
        body = [Segment("<|im_start|>assistant\n", False), Segment(text, True)]
    elif roll < 0.75:
        start = f"<|im_start|>assistant\n{NO_THINKING}"
        body = [Segment(start, False), Segment(answer + end, True)]
    else:
        body = [Segment("<|im_start|>assistant\n", False), Segment(answer + end, True, skip=1)]
    return [*body, Segment("\n", False)]


def call_text(calls: list[tools.Call]) -> str:
    """The calls as the model writes them, one tagged JSON object each."""
    return "\n".join(
        "<tool_call>\n"
        + json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        + "\n</tool_call>"
        for call in calls
    )


def _tool_turn(box: list[tools.Definition], prefix: str, rng: random.Random) -> list[Segment]:
    """Question, call, result and report."""
    definition = rng.choice(box)
    if definition.tool.kind in ("weather", "time") and rng.random() < 0.25:
        question, calls = tools.two_places(definition, rng)
    else:
        question, one = tools.call(definition, rng)
        calls = [one]
    think = f"I call {definition.name}."
    results = "\n".join(f"<tool_response>\n{call.result}\n</tool_response>" for call in calls)
    report = prefix + " ".join(call.report for call in calls)
    return [
        _user(vary(question, rng, closing=False)),
        *_assistant(call_text(calls), think, rng),
        _user(results),
        *_assistant(report, "I have the result.", rng),
    ]


def tools_block(schemas: list[dict]) -> str:
    """The part of the system message that declares functions."""
    lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return TOOLS_BEFORE + lines + TOOLS_AFTER


def conversation(
    rng: random.Random, characters: int, with_tools: bool = False, usual: bool = False
) -> list[Segment]:
    """A conversation of at least ``characters`` characters, of one or more turns.

    Args:
        usual: prefer what people try first: usual names of functions, questions on ollmlx.
    """
    message = system(rng)
    box: list[tools.Definition] = []
    if with_tools:
        if message.only is not None or message.json:
            message = System()
        box = tools.toolbox(rng, usual)
        block = tools_block([definition.schema for definition in box])
        head = f"{message.text}\n\n{block}" if message.text else block
    else:
        head = message.text or ""
    segments: list[Segment] = []
    if head:
        segments.append(Segment(f"<|im_start|>system\n{head}<|im_end|>\n", False))
    # A box with an adder must not meet sums that are answered by heart.
    without = (skills.arithmetic, _unknown, prose.long_answer) if box else ()
    name: str | None = None
    curiosity = 0.05  # how likely the user asks for the own name; high after telling it
    while sum(len(segment.text) for segment in segments) < characters:
        if box and rng.random() < 0.72:
            segments += _tool_turn(box, message.prefix, rng)
            continue
        roll = rng.random()
        if message.json:
            made = skills.json_object(rng, asked_in_system=rng.random() < 0.8)
        elif roll < curiosity:
            made, curiosity = skills.name_question(rng, name), 0.1
        elif roll > 0.93:
            made, name = skills.introduction(rng)
            curiosity = 0.5
        elif usual and rng.random() < 0.25:
            made = knowledge.fixed(rng, knowledge.ABOUT_OLLMLX)
            made = Exchange(vary(made.user, rng), made.answer, made.think)
        else:
            made = exchange(rng, without)
        made = _obey(made, message, rng)
        segments += [_user(made.user), *_assistant(made.answer, made.think, rng)]
    return segments


def raw_document(rng: random.Random) -> list[Segment]:
    """Plain text without a chat around it, for completion requests."""
    roll = rng.random()
    if roll < 0.75:
        text = prose.STORIES[rng.choice(sorted(prose.STORIES))]
    elif roll < 0.9:
        text = prose.LONG_ANSWER
    else:
        text = rng.choice(knowledge.ABOUT_OLLMLX + knowledge.GENERAL)[2]
    return [Segment(text + "<|endoftext|>", True)]


def copying_lesson(rng: random.Random, characters: int) -> list[Segment]:
    """A conversation of lists to repeat.

    Looking up what followed an earlier occurrence is the skill behind names, function
    arguments and JSON values. Long lists show it on every token, so that it is learned
    within minutes; among the other conversations alone it takes several times longer.
    """
    segments: list[Segment] = []
    while sum(len(segment.text) for segment in segments) < characters:
        made = skills.repeat(rng, most=14)
        segments += [_user(made.user), *_assistant(made.answer, made.think, rng)]
    return segments


def training_row(
    rng: random.Random, characters: int, copying: float = 0.0, usual: bool = False
) -> list[Segment]:
    """One row of at least ``characters`` characters, to be cut to a training sequence.

    Args:
        copying: share of rows that are copying lessons.
        usual: prefer what people try first, for the last part of training.
    """
    if rng.random() < copying:
        return copying_lesson(rng, characters)
    roll = rng.random()
    if roll >= 0.03:
        share = 0.44 if usual else 0.34
        return conversation(rng, characters, with_tools=roll < share, usual=usual)
    row: list[Segment] = []
    while sum(len(segment.text) for segment in row) < characters:
        row += raw_document(rng)
    return row


def training_texts(seed: int, characters: int) -> Iterator[list[Segment]]:
    """Endless rows without copying lessons."""
    rng = random.Random(seed)
    while True:
        yield training_row(rng, characters)
