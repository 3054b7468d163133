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

    An empty alternative (``[please |]``) makes the group optional.
    """
    return _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), pattern)


_OPENINGS = ("Hi, ", "Hello, ", "Hey, ", "Please tell me: ", "Quick question: ", "Okay, ", "So, ")
_CLOSINGS = (" Thanks!", " Please.", " Thank you.", " Be brief.", " Be concise.")


def vary(question: str, rng: random.Random, closing: bool = True) -> str:
    """Type ``question`` less carefully: case, punctuation, an opening or a closing.

    Args:
        closing: whether words may be added at the end; false where the end is to be copied.
    """
    roll = rng.random()
    if roll < 0.12:
        question = question.lower()
    elif roll < 0.20 and question[-1] in ".?!":
        question = question[:-1]
    elif roll < 0.26 and question[-1] in ".?!":
        question = question[:-1].lower()
    elif roll < 0.32:
        question = rng.choice(_OPENINGS) + question[0].lower() + question[1:]
    elif roll < 0.38 and closing and question[-1] in ".?!":
        question += rng.choice(_CLOSINGS)
    return question


_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh ch th".split()
_VOWELS = "a e i o u ai ea oo".split()
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "nd", "rk", "st", "ck"]


def invented_word(rng: random.Random) -> str:
    """A pronounceable word of one to three syllables that means nothing.

    Copying such words is what teaches the model to copy rather than to recall.
    """
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    )


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
