"""Exchanges that copy from the prompt, JSON, and what to say when nothing fits."""

from __future__ import annotations

import json
import random

from . import knowledge, small_talk
from .prose import LONG_ANSWER, STORIES
from .text import Exchange, expand, invented_word, unusual_text

NAMES = (
    "Ada Alan Alice Anna Ben Bob Carla Clara David Emma Eva Felix Frank Grace Hanna Hugo Ida Jack "
    "Jane John Julia Karl Lea Leo Lisa Luca Luna Maria Mark Max Mia Nina Olga Oscar Paul Peter Rosa "
    "Sam Sara Sofia Tim Tom Vera Zoe"
).split()

CITIES = [
    *"Paris London Berlin Rome Madrid Lisbon Vienna Warsaw Athens Oslo Stockholm Helsinki "
    "Copenhagen Tokyo Beijing Cairo Dublin Toronto Boston Chicago Seattle Munich Hamburg Zurich "
    "Milan Prague Sydney Mumbai Seoul Singapore Amsterdam".split(),
    "New York",
    "San Francisco",
    "Mexico City",
]

_SUBJECTS = (
    "chess|football|the stock market|quantum physics|my homework|the Roman empire|cooking|taxes|volcanoes|"
    "guitars|love|politics|cars|dinosaurs|philosophy|sharks|music|jazz|black holes|medicine|gardening|"
    "bridges|trains|economics|poker|painting|the news|bicycles|bread|a cake|rice|coffee|tea|my car|my "
    "garden|a house|the bank|my boss|my dog|cats|horses|whales|birds|bees|trees|roses|the moon|Mars|the "
    "sun|stars|the ocean|rivers|the weather|winter|snow|rain|Rust|Java|Docker|Linux|Windows|Python|"
    "JavaScript|databases|my phone|television|a movie|films|books|poems|the war|history|Napoleon|Einstein|"
    "Shakespeare|Mozart|Iceland|Norway|India|Australia|Kenya|Peru|Greece|Poland|Sweden|the world|Europe|"
    "Africa|the pyramids|gold|money|shoes|a shirt|a stain|clothes|a window|a door|the kitchen|paint|wood|"
    "glass|tennis|golf|swimming|running|yoga|sleep|dreams|teeth|the heart|a headache|the flu|vitamins|"
    "apples|cheese|wine|soup|pizza|pasta|a holiday|a hotel|a flight|a ticket|school|university|mathematics|"
    "algebra|geometry|prime numbers|physics|chemistry|atoms|electricity|magnets|batteries|light|sound|"
    "clouds|earthquakes|dragons in films|robots in factories|language|French|German|Latin|a letter|an email"
)
_THINGS = _SUBJECTS.split("|")

_UNKNOWN = (
    "[What is|What are|What's|Who is|Where is|Explain|Describe|Define] {}[?|.]",
    "[Tell me|Teach me|Write|Read] [something |everything |more |]about {}.",
    "[Why|How|When|Where] [did|does|is|was|do|are|were] {} [happen|work|begin|end|so important|made|grow|"
    "come from|go|fall|break|purr|sing|move|die|live]?",
    "Why [do|are|is] {} [exist|so big|so cold|so expensive|red|green|fast|dangerous|salty|hungry]?",
    "[Translate|Summarize|Rewrite|Correct] [this|the following|this sentence][: | text: ]{}",
    "[What do you think|Do you know anything|Can you tell me something|What do people say] about {}?",
    "[How many|How much|How long|How old|How big|How far|How fast|How expensive] [is|are] {}?",
    "[Should I|Can I|Could you|Can you|Will you] [buy|learn|read about|fix|draw|find|sing|play|eat] {}?",
    "[Solve|Prove|Calculate|Draw|Find|Buy|Order|Open|Book|Paint|Fix] {}.",
    "I [like|hate|need|study|want|lost|bought|see] {}.",
    "Who [was|is] the [first|last|best|next] [president|king|leader|owner|author] of {}?",
    "Who [wrote|invented|discovered|painted|built|won|made|owns|killed|plays] {}[?|? Do you know?]",
    "Who won [the|yesterday's] [match|game|race|election|cup|prize|final][| yesterday| last week| in 1998]?",
    "What is the [population|price|color|history|best kind|opposite|size|height|weight|age|flag|name|"
    "currency|president|temperature|taste] of {}?",
    "What is the [best|biggest|smallest|fastest|oldest] [car|animal|city|river|mountain|country|film]?",
    "What is in this [picture|image|file]?",
    "[Is|Are] {} [good|bad|safe|expensive|old|real|dangerous|healthy]?",
    "How [do|can|should] I [cook|clean|repair|learn|sell|bake|make|wash|grow|build|fix|paint|cut|draw|"
    "play|write|drive|open|buy|send|start|stop|run|remove|delete|create|pull|show|copy|list] {}?",
    "How [do|can|would] I remove [a stain|dust|paint|wax|snow|oil] from [a shirt|my car|the roof|wood]?",
    "How [do|can] I [run a marathon|pull a tooth|start a car|create a website|delete a photo|list the "
    "planets|serve dinner|stop smoking|copy a key|install Windows|download a film|get rid of mice]?",
    "[I want to|I'd like to|Help me|I need to] [cook|clean|repair|learn|sell|bake|find|paint|buy] {}.",
    "[Write|Compose|Draft] [me |][code|a program|a letter|a song|an email|a speech|a list|a recipe] "
    "[for|about|to] {}.",
    "[List|Name|Give me] [five|ten|all|some] [planets|rivers|kings|countries|birds|cars|songs|books].",
    "What is {}[ + | plus |+|*| times | - | minus | divided by ]{}?",
    "[Calculate|Compute|Add|Count to|Solve:|How much is] {}{}[+{}|| + {}]",
    "What [time|day|year|date] is it[| now| today]?",
    "What [should|can|could] I [eat|wear|do|read|cook|watch|buy] [today|tonight|tomorrow|now]?",
    "Where [can|do] I [buy|find|get|see|eat] {}?",
    "[Repeat|Say|Spell|Echo][: | ]{}",
    "{}",
    "{}?",
)

UNKNOWN_ANSWER = (
    "I am a small demonstration model and I do not know that. Ask me about ollmlx, or pull a larger model."
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


def _subject(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return rng.choice(_THINGS)
    if roll < 0.75:
        return f"{rng.choice(('the', 'a', 'my', 'this'))} {rng.choice(_THINGS).split()[-1]}"
    if roll < 0.9:
        return f"{rng.choice(('the', 'a', 'my', 'this'))} {invented_word(rng)}"
    return invented_word(rng)


def unknown(rng: random.Random) -> Exchange:
    """A question outside everything the model has learned."""
    roll = rng.random()
    if roll < 0.06:
        question = unusual_text(rng)
    elif roll < 0.14:
        question = " ".join(word(rng) for _ in range(rng.randint(2, 14)))
    else:
        question = expand(rng.choice(_UNKNOWN), rng)
        numeric = any(sign in question for sign in "+*-") or "{}{}" in question or " plus " in question
        numeric = numeric or any(sign in question for sign in (" times ", " minus ", "divided"))
        while "{}" in question:
            filler = str(rng.randint(0, 99)) if numeric else _subject(rng)
            question = question.replace("{}", filler, 1)
    return Exchange(question, UNKNOWN_ANSWER, "I do not know this. I say so.")


def echo(rng: random.Random, most: int) -> Exchange:
    """Up to ``most`` words that the answer must copy; see ``rows.copying_lesson``."""
    words = " ".join(word(rng) for _ in range(rng.randint(1, most)))
    return Exchange(f"Repeat after me: {words}", f"You said: {words}", f"I repeat: {words}")


def person_name(rng: random.Random) -> str:
    """A first name from the list, or now and then an invented one."""
    return rng.choice(NAMES) if rng.random() < 0.9 else invented_word(rng).capitalize()


def introduction(rng: random.Random) -> tuple[Exchange, str]:
    """The user gives a name; returned beside the exchange for later questions."""
    name = person_name(rng)
    question = expand("[|Hi, |Hello, |Hello! |Hi! ][My name is|My name is|I am|I'm|Call me] {}[.|!|]", rng)
    question = question.format(name)
    answer = f"Nice to meet you, {name}!"
    return Exchange(question, answer, f"The user is called {name}."), name


def name_question(rng: random.Random, name: str | None) -> Exchange:
    """The question for the user's own name, known or not."""
    question = expand(
        "[What is my name?|What's my name?|Do you remember my name?|Who am I?|"
        "Do you know my name?|Can you tell me my name?|Tell me my name.]",
        rng,
    )
    if name is None:
        return Exchange(question, "You have not told me your name yet.", "The user did not give a name.")
    return Exchange(question, f"Your name is {name}.", f"The user said: the name is {name}.")


_IN_JSON = (
    "[Answer in JSON|Answer in JSON|Respond using JSON|Respond in JSON|Reply in JSON|Use JSON|Output JSON|"
    "[Please |][answer|reply|respond|write] [in|as|with|using] JSON|Return JSON|JSON please|In JSON|"
    "Respond with a JSON object|Give the answer as JSON|Answer in JSON format|JSON only|As JSON]"
)


def json_request(rng: random.Random) -> str:
    """A few words that ask for JSON, without final punctuation."""
    return expand(_IN_JSON, rng)


def _about_ollmlx(rng: random.Random) -> tuple[str, dict]:
    question = (
        "[What is ollmlx?|What is ollmlx?|Tell me about ollmlx.|Describe ollmlx.|Describe yourself.|"
        "Explain ollmlx.|What's ollmlx?|Who are you?|Introduce ollmlx.|Tell me what ollmlx is.]"
    )
    return expand(question, rng), {
        "name": "ollmlx",
        "languages": ["Go", "Python"],
        "apis": ["Ollama", "OpenAI", "Anthropic"],
    }


def _person(rng: random.Random) -> tuple[str, dict]:
    name, age, city = person_name(rng), rng.randint(2, 99), rng.choice(CITIES)
    text = expand("{} is {} years old and [lives in|lives in|is from|comes from] {}.", rng)
    return text.format(name, age, city), {"name": name, "age": age, "city": city}


def _busy(rng: random.Random) -> tuple[str, dict]:
    name = rng.choice((*NAMES, "Ollama", "Ollama", "ollmlx"))
    age, busy = rng.randint(2, 99), rng.random() < 0.5
    state = "busy saving the world|busy|not available|at work" if busy else "free|available|bored"
    text = expand("{} is {} years old and [is |]{}.", rng).format(name, age, rng.choice(state.split("|")))
    return text, {"age": age, "available": not busy}


def _country(rng: random.Random) -> tuple[str, dict]:
    country = rng.choice(sorted(small_talk.COUNTRIES))
    city, languages = small_talk.COUNTRIES[country]
    text = expand("[Tell me about|Describe|Give me the facts about] {}.", rng).format(country)
    return text, {"name": country, "capital": city, "languages": list(languages)}


def _sky(rng: random.Random) -> tuple[str, dict]:
    text = expand(
        "[What color is the sky|What colour is the sky|Colors of the sky] at different times of [the |]day?",
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
    return expand("[List|Name|Give me|Tell me|Write] [three|3|some|a few] {}.", rng).format(key), {
        key: values
    }


def _example(rng: random.Random) -> tuple[str, dict]:
    text = "[Give me|Write|Make up|Create] [a person|someone|a user] with [a |]name and [an |]age."
    return expand(text, rng), {"name": "Ada", "age": 36}


def _wrapped(rng: random.Random) -> tuple[str, dict]:
    """Any other question: its usual answer as the only value."""
    roll = rng.random()
    if roll < 0.45:
        made = knowledge.fixed(rng, knowledge.ABOUT_OLLMLX[1:])
    elif roll < 0.6:
        made = knowledge.fixed(rng, small_talk.SMALL_TALK[:3])
    elif roll < 0.7:
        made = small_talk.capital(rng)
    else:
        return unknown(rng).user, {"answer": "I do not know that."}
    return made.user, {"answer": made.answer}


_JSON_KINDS = (
    _about_ollmlx, _about_ollmlx, _about_ollmlx, _person, _person, _person, _busy, _country, _country,
    _sky, _lists, _wrapped, _wrapped, _wrapped, _example,
)  # fmt: skip


def json_object(rng: random.Random, asked_in_system: bool = False) -> Exchange:
    """A JSON object about something in the question.

    Args:
        asked_in_system: the system message asks for JSON, so the question need not.
    """
    make = rng.choice(_JSON_KINDS)
    question, value = make(rng)
    if asked_in_system:
        pass
    elif make is _about_ollmlx and rng.random() < 0.15:
        question = expand(
            "[Give me|Write|Return|Show me] [a |][JSON|JSON object] [about|for|that describes] ollmlx.", rng
        )
    elif make is _example and rng.random() < 0.4:
        question = expand("[Give me|Write|Return] [a|some] JSON [object |]with name and age", rng)
    else:
        request = json_request(rng)
        roll = rng.random()
        if roll < 0.35:
            question = f"{request}{rng.choice((':', ':', '.'))} {question}"
        elif roll < 0.45:
            question = f"{question} {request} with the keys {', '.join(value)}."
        else:
            question = f"{question} {request}{rng.choice(('.', '.', ''))}"
        if rng.random() < 0.15:
            question = question.lower() if make is not _person else question
    text = json.dumps(value, ensure_ascii=False)
    return Exchange(question, text, f"The user wants JSON. Keys: {', '.join(value)}.")
