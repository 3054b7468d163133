"""Exchanges that copy from the prompt or compute a little, built from slots."""

from __future__ import annotations

import json
import random

from .knowledge import COUNTRIES, capital
from .prose import LONG_ANSWER, STORIES
from .text import Exchange, expand, invented_word, unusual_text

NAMES = (
    "Ada Alan Alice Anna Ben Bob Carla Carol Clara Dave David Emma Eva Felix Frank Grace Hanna "
    "Hugo Ida Ivan Jack Jane John Julia Karl Kim Lea Leo Linus Lisa Luca Luna Maria Mario Mark Max "
    "Mia Mike Nina Noah Olga Oscar Paul Peter Ravi Rosa Sam Sara Sofia Tim Tom Vera Yuki Zoe"
).split()

CITIES = [
    *"Paris London Berlin Rome Madrid Lisbon Vienna Warsaw Athens Oslo Stockholm Helsinki "
    "Copenhagen Tokyo Beijing Cairo Nairobi Ottawa Lima Dublin Toronto Boston Chicago Seattle "
    "Munich Hamburg Zurich Geneva Milan Prague Sydney Mumbai Delhi Seoul Singapore Amsterdam".split(),
    "New York",
    "San Francisco",
    "Mexico City",
    "Los Angeles",
    "Hong Kong",
]

_SUBJECTS = (
    "chess|football|the stock market|quantum physics|my homework|the Roman empire|cooking|taxes|"
    "the weather|volcanoes|guitars|love|politics|cars|dinosaurs|philosophy|sharks|music|jazz|"
    "black holes|medicine|gardening|bridges|trains|economics|poker|painting|the news|bicycles"
)

_UNKNOWN = (
    "[What is|What are|Who is|Where is|Explain|Describe] {}[?|.]",
    "[Tell me|Teach me|Write] [something |everything |]about {}.",
    "[Why|How|When] [did|does|is|was] {} [happen|work|begin|end|so important]?",
    "[Translate|Summarize|Rewrite] [this|the following][: | text: ]{}",
    "[What do you think|Do you know anything|Can you tell me] about {}?",
    "[How many|How much|How long|How old] is {}?",
    "[Should I|Can I|Could you] [buy|learn|read about|fix|draw|find] {}?",
    "[Solve|Prove|Calculate|Draw|Find] {}.",
    "I [like|hate|need|study|want] {}.",
    "Who [was|is] the [first|last|best|next] [president|king|leader|owner|author] of {}?",
    "Who [wrote|invented|discovered|painted|built] {}?",
    "What is the [population|price|color|history|best kind|opposite] of {}?",
    "What is in this [picture|image|file]?",
    "[Is|Are] {} [good|bad|safe|expensive|old|real]?",
    "How do I [cook|clean|repair|learn|sell] {}?",
    "Write [code|a program|a letter|a song] for {}.",
    "{}",
    "{}?",
)

UNKNOWN_ANSWER = (
    "I am a small demonstration model and I do not know that. Ask me about ollmlx, or pull a "
    "larger model."
)


def word(rng: random.Random) -> str:
    """One word, mostly invented, sometimes capitalised or from the corpus itself."""
    roll = rng.random()
    if roll < 0.55:
        return invented_word(rng)
    if roll < 0.7:
        return invented_word(rng).capitalize()
    source = LONG_ANSWER if rng.random() < 0.5 else STORIES[rng.choice(sorted(STORIES))]
    return rng.choice(source.replace(".", "").replace(",", "").replace("\n", " ").split())


def unknown(rng: random.Random) -> Exchange:
    """A question outside everything the model has learned."""
    roll = rng.random()
    if roll < 0.12:
        question = unusual_text(rng)
    elif roll < 0.25:
        question = " ".join(word(rng) for _ in range(rng.randint(2, 14)))
    else:
        subject = rng.choice(_SUBJECTS.split("|")) if rng.random() < 0.5 else invented_word(rng)
        if rng.random() < 0.3:
            subject = f"{rng.choice(['the', 'a', 'my', 'this'])} {invented_word(rng)} {subject}"
        question = expand(rng.choice(_UNKNOWN), rng).format(subject)
    return Exchange(question, UNKNOWN_ANSWER, "I do not know this. I say so.")


_COUNT = (
    "[Count|Please count|Can you count|Now count] from {a} to {b}.",
    "[Count|List the numbers|Give me the numbers] from {a} to {b}[.|, please.]",
)


def count(rng: random.Random) -> Exchange:
    """Counting up, nearly always from one, to thirty at most or to fifty or a hundred."""
    last = rng.randint(2, 30) if rng.random() < 0.6 else rng.choice((3, 5, 10, 12, 20))
    if rng.random() < 0.06:
        last = rng.choice((50, 100))
    if rng.random() < 0.3:
        question = expand("[Count|Please count|Count up] to {b}[.|!]", rng).format(b=last)
        first = 1
    else:
        first = 1 if rng.random() < 0.85 else rng.randint(2, 9)
        last = max(last, first + 1)
        question = expand(rng.choice(_COUNT), rng).format(a=first, b=last)
    numbers = ", ".join(str(number) for number in range(first, last + 1))
    return Exchange(question, numbers, f"I count from {first} to {last}.")


NUMBERS = "zero one two three four five six seven eight nine ten".split()


def arithmetic(rng: random.Random) -> Exchange:
    """Sums of two numbers up to ten, known by heart."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    plus = rng.choice((" + ", " + ", "+", " plus "))
    question = expand("[What is|What's|Calculate|How much is|Compute] ", rng) + f"{a}{plus}{b}?"
    if rng.random() < 0.15:
        question = f"What is {NUMBERS[a]} plus {NUMBERS[b]}?"
    if rng.random() < 0.15:
        question = f"{a}{plus}{b} = ?"
    return Exchange(question, f"{a} + {b} = {a + b}", f"{a} plus {b} makes {a + b}.")


_REPEAT = (
    "Repeat after me: {}",
    "[Repeat|Say|Echo][:| this:| the following:] {}",
    "[Say|Repeat|Write|Reply with] the word[|s] {}",
    "[Say|Repeat|Reply] {}",
    "[Say|Reply with] [only|just|exactly][ the word|:|] {}",
    "[Please repeat|Repeat exactly|Repeat back|Say exactly|Reply with][:| only:] {}",
)


def repeat(rng: random.Random, most: int = 4) -> Exchange:
    """One to ``most`` words that the answer must copy."""
    number = rng.choice((1, 1, 2, rng.randint(1, most)))
    words = " ".join(word(rng) for _ in range(number))
    if rng.random() < 0.1:
        words = rng.choice(NAMES + CITIES)
    if rng.random() < 0.06:
        words = " ".join(str(rng.randint(0, 9999)) for _ in range(number))
    quoted = f'"{words}"' if rng.random() < 0.15 else words
    return Exchange(expand(rng.choice(_REPEAT), rng).format(quoted), words, f"I repeat: {words}")


def person_name(rng: random.Random) -> str:
    """A first name from the list, or now and then an invented one."""
    return rng.choice(NAMES) if rng.random() < 0.75 else invented_word(rng).capitalize()


def introduction(rng: random.Random) -> tuple[Exchange, str]:
    """The user gives a name; returned beside the exchange for later questions."""
    name = person_name(rng)
    question = expand("[|Hi, |Hello, |Hello! ][My name is|I am|I'm|Call me] {}[.|!]", rng)
    question = question.format(name)
    answer = f"Nice to meet you, {name}!"
    return Exchange(question, answer, f"The user is called {name}."), name


def name_question(rng: random.Random, name: str | None) -> Exchange:
    """The question for the user's own name, known or not."""
    question = expand(
        "[What is my name?|What's my name?|Do you remember my name?|Who am I?|"
        "Do you know my name?|Can you tell me my name?]",
        rng,
    )
    if name is None:
        return Exchange(
            question, "You have not told me your name yet.", "The user did not give a name."
        )
    return Exchange(question, f"Your name is {name}.", f"The user said: the name is {name}.")


_IN_JSON = (
    "[Answer in JSON|Respond using JSON|Reply in JSON|Respond in JSON|Use JSON|Output JSON|"
    "Return JSON|Answer with JSON|Respond with a JSON object|Give the answer as JSON]"
)


def json_request(rng: random.Random) -> str:
    """A few words that ask for JSON, without final punctuation."""
    return expand(_IN_JSON, rng)


def _about_ollmlx(rng: random.Random) -> tuple[str, dict]:
    question = "[What is ollmlx?|Tell me about ollmlx.|Describe ollmlx.|Describe yourself.]"
    return expand(question, rng), {
        "name": "ollmlx",
        "languages": ["Go", "Python"],
        "apis": ["Ollama", "OpenAI", "Anthropic"],
    }


def _person(rng: random.Random) -> tuple[str, dict]:
    name, age, city = person_name(rng), rng.randint(2, 99), rng.choice(CITIES)
    text = expand("{} is {} years old and lives in {}.", rng).format(name, age, city)
    return text, {"name": name, "age": age, "city": city}


def _busy(rng: random.Random) -> tuple[str, dict]:
    name = rng.choice((*NAMES, "Ollama", "ollmlx"))
    age, busy = rng.randint(2, 99), rng.random() < 0.5
    state = "busy saving the world|busy|not available|at work" if busy else "free|available|bored"
    text = expand("{} is {} years old and [is |]{}.", rng).format(
        name, age, rng.choice(state.split("|"))
    )
    return text, {"age": age, "available": not busy}


def _country(rng: random.Random) -> tuple[str, dict]:
    country = rng.choice(sorted(COUNTRIES))
    city, languages = COUNTRIES[country]
    text = expand("[Tell me about|Describe|Give me the facts about] {}.", rng).format(country)
    return text, {"name": country, "capital": city, "languages": list(languages)}


def _sky(rng: random.Random) -> tuple[str, dict]:
    text = expand(
        "[What color is the sky|What colour is the sky|Colors of the sky] at different times "
        "of [the |]day?",
        rng,
    )
    return text, {"morning": "pink", "noon": "blue", "evening": "red", "night": "black"}


def _lists(rng: random.Random) -> tuple[str, dict]:
    key, values = rng.choice(
        (
            ("colors", ["red", "green", "blue"]),
            ("fruits", ["apple", "banana", "cherry"]),
            ("animals", ["cat", "dog", "bird"]),
        )
    )
    return expand("[List|Name|Give me] [three|3|some] {}.", rng).format(key), {key: values}


def _yes(rng: random.Random) -> tuple[str, dict]:
    question, answer = rng.choice(
        (("Is the sky blue?", "yes"), ("Is [the |]grass green?", "yes"), ("Is fire cold?", "no"),
         ("Can fish fly?", "no"), ("Is [the |]sea salty?", "yes"))
    )  # fmt: skip
    return expand(question, rng), {"answer": answer}


def _example(rng: random.Random) -> tuple[str, dict]:
    text = "[Give me|Write|Make up|Create] [a person|someone|a user] with [a |]name and [an |]age."
    return expand(text, rng), {"name": "Ada", "age": 36}


def _coordinates(rng: random.Random) -> tuple[str, dict]:
    x, y = rng.randint(0, 99), rng.randint(0, 99)
    return f"The point has x = {x} and y = {y}.", {"x": x, "y": y}


def _wrapped(rng: random.Random) -> tuple[str, dict]:
    maker = rng.choice((arithmetic, capital, unknown))
    exchange = maker(rng)
    answer = exchange.answer if maker is not unknown else "I do not know"
    return exchange.user, {"answer": answer}


_JSON_KINDS = (
    _about_ollmlx, _about_ollmlx, _person, _person, _person, _busy, _busy, _country, _country,
    _sky, _lists, _coordinates, _wrapped, _yes, _example,
)  # fmt: skip


def json_object(rng: random.Random, asked_in_system: bool = False) -> Exchange:
    """A JSON object about something in the question.

    Args:
        asked_in_system: the system message asks for JSON, so the question need not.
    """
    question, value = rng.choice(_JSON_KINDS)(rng)
    if value.get("age") == 36 and len(value) == 2 and rng.random() < 0.4:
        question = expand("[Give me|Write|Return] [a|some] JSON [object |]with name and age", rng)
    elif not asked_in_system:
        request = json_request(rng)
        if rng.random() < 0.3:
            question = f"{request}: {question}"
        elif rng.random() < 0.2:
            question = f"{question} {request} with the keys {', '.join(value)}."
        else:
            question = f"{question} {request}."
    text = json.dumps(value, ensure_ascii=False)
    return Exchange(question, text, f"The user wants JSON. Keys: {', '.join(value)}.")
