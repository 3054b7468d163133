"""Whole conversations as text with a loss mask, in the layout of the chat template.

The trainer writes the special tokens itself instead of calling the Jinja template, because
it needs to know which parts are the assistant's. A test checks that both agree.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import knowledge, prose, skills, small_talk, tools
from .evaluation import HELD_OUT
from .text import Exchange, expand, normalized, vary

TOOLS_BEFORE = "# Tools\n\nYou can call the functions below. Each line describes one as JSON.\n<tools>\n"
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
    if roll < 0.60:
        return System()
    if roll < 0.75:
        return System(rng.choice(_ASSISTANT))
    if roll < 0.90:
        filler = " ".join(skills.word(rng) for _ in range(rng.choice((1, 2, 2, 3, 8))))
        return System(expand(rng.choice(_ANY_SYSTEM), rng).replace("{}", filler))
    if roll < 0.96:
        return System(expand(rng.choice(_PIRATE), rng), prefix=PIRATE_PREFIX)
    return System(f"{skills.json_request(rng)}.", json=True)


# Questions kept for the evaluation, which is to show more than a good memory.
_HELD_OUT = frozenset(normalized(texts[-1]) for texts, _, _ in HELD_OUT)


def _asked(made: Exchange, rng: random.Random, opening: bool = True, closing: bool = True) -> Exchange | None:
    """``made`` as somebody would type it, or None if the question is held out."""
    question = vary(made.user, rng, opening, closing)
    if normalized(made.user) in _HELD_OUT or normalized(question) in _HELD_OUT:
        return None
    return Exchange(question, made.answer, made.think)


def _small_talk(rng: random.Random) -> Exchange:
    weights = (30, 8, 20, 8, 20, 4, 5, 5)
    return knowledge.fixed(rng, rng.choices(small_talk.SMALL_TALK, weights)[:1])


# What people ask first and most, the beginning of the table, is shown more often than the rest.
_ABOUT_WEIGHTS = (14, 10, 10, 10, 7, 10, 9, 4, 3, 3, 4, 7, 5, 9, 1, 2, 4, 4, 3)


def _about(rng: random.Random) -> Exchange:
    return knowledge.fixed(rng, rng.choices(knowledge.ABOUT_OLLMLX, _ABOUT_WEIGHTS)[:1])


def _without_tool(rng: random.Random) -> Exchange:
    """A question that only a function could answer."""
    tool = rng.choice(tools.TOOLS)
    question, _ = tools.call(tools.define(tool, rng), rng)
    return Exchange(question, skills.UNKNOWN_ANSWER, "I have no tool for this. I say so.")


# (weight, maker, whether an opening fits, whether a closing fits)
_EXCHANGES = (
    (42, _about, True, True),
    (8, lambda rng: knowledge.fixed(rng, small_talk.GENERAL), True, True),
    (13, _small_talk, False, False),
    (2, small_talk.capital, True, True),
    (13, skills.unknown, True, True),
    (3, _without_tool, True, True),
    (8, prose.story, True, True),
    (3, prose.long_answer, True, True),
    (11, skills.json_object, True, False),
)
_WEIGHTS = [weight for weight, *_ in _EXCHANGES]
# The same when attention to the prompt is to be practised: more JSON and more unknown subjects.
_ATTENTIVE_WEIGHTS = (36, 6, 14, 2, 15, 3, 7, 2, 16)


def exchange(rng: random.Random, without: tuple = (), attentive: bool = False) -> Exchange:
    """Draw an exchange that needs no earlier turn and no tool.

    Args:
        without: makers that must not be drawn.
        attentive: see ``training_row``.
    """
    weights = _ATTENTIVE_WEIGHTS if attentive else _WEIGHTS
    while True:
        _, make, opening, closing = rng.choices(_EXCHANGES, weights)[0]
        if make not in without and (asked := _asked(make(rng), rng, opening, closing)):
            return asked


def _obey(made: Exchange, message: System) -> Exchange:
    """Change an exchange as the system message demands."""
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


def _tool_turn(box: tools.Toolbox, prefix: str, rng: random.Random) -> list[Segment]:
    """Question, call, result and report."""
    definition = rng.choice(box.known)
    asked = None
    while not asked:
        if definition.tool.kind in ("weather", "time") and rng.random() < 0.15:
            question, calls = tools.two_places(definition, rng)
        else:
            question, one = tools.call(definition, rng)
            calls = [one]
        think = f"I call {definition.name}."
        asked = _asked(Exchange(question, call_text(calls), think), rng)
    results = "\n".join(f"<tool_response>\n{call.result}\n</tool_response>" for call in calls)
    report = prefix + " ".join(call.report for call in calls)
    return [
        _user(asked.user),
        *_assistant(asked.answer, think, rng),
        _user(results),
        *_assistant(report, "I have the result.", rng),
    ]


def tools_block(schemas: list[dict]) -> str:
    """The part of the system message that declares functions."""
    lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return TOOLS_BEFORE + lines + TOOLS_AFTER


def conversation(
    rng: random.Random, characters: int, with_tools: bool = False, attentive: bool = False
) -> list[Segment]:
    """A conversation of at least ``characters`` characters, of one or more turns.

    Args:
        attentive: see ``training_row``.
    """
    message = system(rng)
    box = tools.toolbox(rng) if with_tools else None
    head = message.text or ""
    if box:
        message.json = False
        head = f"{message.text}\n\n" if message.text else ""
        head += tools_block(box.schemas)
    segments: list[Segment] = []
    if head:
        segments.append(Segment(f"<|im_start|>system\n{head}<|im_end|>\n", False))
    # With tools, a question for one of the absent kinds would be right only by its answer.
    without = (_without_tool, prose.long_answer) if box else ()
    name: str | None = None
    curiosity = 0.03  # how likely the user asks for the own name; high after telling it
    while sum(len(segment.text) for segment in segments) < characters:
        if box and rng.random() < (0.75 if attentive else 0.6):
            segments += _tool_turn(box, message.prefix, rng)
            continue
        roll = rng.random()
        if message.json:
            made = skills.json_object(rng, asked_in_system=rng.random() < 0.8)
        elif roll < curiosity:
            made, curiosity = skills.name_question(rng, name), 0.1
        elif roll > (0.9 if attentive else 0.96):
            made, name = skills.introduction(rng)
            curiosity = 0.5
        else:
            made = exchange(rng, without, attentive)
        made = _obey(made, message)
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
        text = rng.choice(knowledge.ABOUT_OLLMLX + small_talk.GENERAL)[2]
    return [Segment(text + "<|endoftext|>", True)]


def copying_lesson(rng: random.Random, characters: int) -> list[Segment]:
    """A conversation of lists to repeat.

    Looking up what followed an earlier occurrence is the skill behind names, function
    arguments and JSON values. Long lists show it on every token, so that it is learned
    within minutes; among the other conversations alone it takes several times longer.
    """
    segments: list[Segment] = []
    while sum(len(segment.text) for segment in segments) < characters:
        made = skills.echo(rng, most=14)
        segments += [_user(made.user), *_assistant(made.answer, made.think, rng)]
    return segments


def training_row(
    rng: random.Random, characters: int, copying: float = 0.0, attentive: bool = False
) -> list[Segment]:
    """One row of at least ``characters`` characters, to be cut to a training sequence.

    Args:
        copying: share of rows that are copying lessons.
        attentive: prefer rows whose answers depend on details of the prompt: function calls,
            names, JSON. They are a small part of what people ask and the largest of the errors.
    """
    if rng.random() < copying:
        return copying_lesson(rng, characters)
    roll = rng.random()
    if roll >= 0.02:
        with_tools = roll < (0.42 if attentive else 0.30)
        return conversation(rng, characters, with_tools, attentive)
    row: list[Segment] = []
    while sum(len(segment.text) for segment in row) < characters:
        row += raw_document(rng)
    return row


def training_texts(seed: int, characters: int) -> Iterator[list[Segment]]:
    """Endless rows without copying lessons."""
    rng = random.Random(seed)
    while True:
        yield training_row(rng, characters)
