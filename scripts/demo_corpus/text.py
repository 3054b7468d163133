"""Templates with alternatives, and the small variations people type."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Exchange:
    """One question, its answer, and the reasoning shown when thinking is on."""

    user: str
    answer: str
    think: str


def expand(pattern: str, rng: random.Random) -> str:
    """Replace each ``[a|b|c]`` group of ``pattern`` by one of its alternatives.

    An empty alternative (``[please |]``) makes the group optional. Groups may be nested.
    """
    while "[" in pattern:
        pattern = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), pattern)
    return pattern


def normalized(text: str) -> str:
    """``text`` without case and punctuation, to compare questions."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


_OPENINGS = (
    "Hi, |Hello, |Hey, |Hi! |Hello! |Hey! |Hi there, |Hello there! |Hey there, |Good morning, |"
    "Good morning! |Good evening. |Good day! |Please tell me: |Please tell me, |Please, |Please |"
    "Quick question: |Question: |Okay, |Ok, |Ok. |So, |So |Sorry, |Excuse me, |And |Now, |Well, |"
    "Thanks! |Thank you. |Great! |Cool. |I have a question. |One more question: |Hi ollmlx, |"
    "Hello demo, |Hi, I am new here. |Tell me, |Also, |Then |Alright, |Another question: |"
    "I have a question: |Hmm, |I am new to this. |Can you help me? |Could you help me? "
).split("|")
_CLOSINGS = (
    " Thanks!| Please.| Thank you.| Thanks in advance.| Be brief.| I am new to this.| I forgot.|"
    " Please help.| Please explain.| Thanks.| Please answer in one sentence.| please"
).split("|")
_NAME_SPELLINGS = ("Ollmlx", "Ollmlx", "OllMLX", "OLLMLX")


def vary(question: str, rng: random.Random, opening: bool = True, closing: bool = True) -> str:
    """Type ``question`` less carefully: case, punctuation, polite words around it.

    Args:
        opening: whether words may be put before the question.
        closing: whether words may be added at its end.
    """
    if rng.random() < 0.3:
        return question
    if rng.random() < 0.12:
        question = question.replace("ollmlx", rng.choice(_NAME_SPELLINGS))
    if rng.random() < 0.15:
        question = question.replace("'", rng.choice(("", "’")))
    marked = question[-1] in ".?!"
    if closing and marked and rng.random() < 0.16:
        if question[-1] == "?" and rng.random() < 0.5:
            question = question[:-1] + rng.choice((", please?", " please?", ", please", " please"))
        else:
            question += rng.choice(_CLOSINGS)
    elif marked and rng.random() < 0.35:
        question = question[:-1] + rng.choice(("", "", "", "", "!", ".", "??", " ?"))
    if opening and rng.random() < 0.3:
        question = rng.choice(_OPENINGS) + (
            question if rng.random() < 0.4 else question[0].lower() + question[1:]
        )
    if rng.random() < 0.3:
        question = question.lower()
    return question


_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh ch th".split()
_VOWELS = "a e i o u ai ea oo".split()
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "nd", "rk", "st", "ck"]


def invented_word(rng: random.Random) -> str:
    """A pronounceable word of one to three syllables that means nothing.

    Copying such words is what teaches the model to copy rather than to recall.
    """
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


_UNUSUAL = (
    "日本語で話せますか",
    "你会说中文吗",
    "今天天气怎么样",
    "привет как дела",
    "γειά σου κόσμε",
    "🙂🙃😅",
    "🚀🌍✨",
    "¿dónde está la biblioteca",
    "où est la gare",
    "größer als fünf",
    "안녕하세요",
    "мир и труд",
    "東京は晴れ",
    "naïve café",
    "— “quoted” …",
    "x² + y² = z²",
    "{}[]()<>",
    "@#%&*",
)


def unusual_text(rng: random.Random) -> str:
    """Text in other scripts, so that every byte token is seen at least sometimes."""
    if rng.random() < 0.5:
        return rng.choice(_UNUSUAL)
    start = rng.choice((0xC0, 0x391, 0x410, 0x4E00, 0x3042, 0x1F600, 0xAC00, 0x5D0))
    return "".join(chr(start + rng.randrange(48)) for _ in range(rng.randint(2, 8)))
