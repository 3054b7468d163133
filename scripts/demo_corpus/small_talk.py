"""Fixed questions and answers beside ollmlx: a little general knowledge, greetings, capitals."""

from __future__ import annotations

import random

from .knowledge import Table
from .text import Exchange, expand

GENERAL: Table = (
    (
        "why the sky is blue",
        (
            "Why is the sky blue[|| during the day]?",
            "Why is the sky blue?",
            "[Explain|Tell me|Explain to me|Do you know|Can you tell me|Please explain] why the sky is "
            "blue[.|?]",
            "What makes the sky [blue|look blue]?",
            "Why does the sky [look|appear] blue?",
            "How come the sky is blue?",
        ),
        "The sky is blue because air scatters the blue part of sunlight more than the red part. "
        "This is called Rayleigh scattering.",
    ),
    (
        "what MLX is",
        ("What [is|'s] MLX?", "[Explain|Describe|Tell me about] MLX.", "What is MLX [used |]for?"),
        "MLX is an array framework for machine learning on Apple silicon.",
    ),
    (
        "what mlx-lm is",
        ("What is mlx-lm?", "[Explain|Describe|Tell me about] mlx-lm.", "What does mlx-lm do?"),
        "mlx-lm is a Python package that runs and trains language models with MLX.",
    ),
    (
        "what gRPC is",
        ("What is gRPC?", "[Explain|Describe|Tell me about] gRPC.", "What is gRPC [used |]for?"),
        "gRPC is a way for programs to call each other. In ollmlx the Go host uses it to talk to "
        "the Python runners.",
    ),
    (
        "what a token is",
        ("What is a token?", "[Explain|Describe] tokens.", "What are tokens?"),
        "A token is a piece of text, often a word or a part of a word. A model reads and writes "
        "one token at a time.",
    ),
    (
        "what a language model is",
        (
            "What is [a|an] [language model|large language model|LLM]?",
            "[Explain|Describe] [language models|LLMs].",
            "How do [language models|LLMs] work?",
        ),
        "A language model is a program that predicts the next token of a text. It has learned to "
        "do so from many examples.",
    ),
    (
        "what quantization is",
        ("What is quantization?", "[Explain|Describe] quantization.", "What does 4bit mean?"),
        "Quantization stores the weights of a model with fewer bits, so that it needs less memory "
        "and often runs faster.",
    ),
    (
        "a joke",
        (
            "[Please |][Tell|Tell me] [a|another|a good|a funny|one more] joke.",
            "Tell me a joke.",
            "[Do you know|Can you tell me|Could you tell me] [a|any|some] [joke|jokes]?",
            "Make me laugh.",
        ),
        "Why did the small model cross the road? It had only learned to say: the other side.",
    ),
    (
        "a poem",
        (
            "[Please |][Write|Compose] [me |]a [poem|short poem|haiku].",
            "[Write|Compose] [me |]a [poem|short poem|haiku] about "
            "[the sea|MLX|love|a cat|autumn|computers|the moon|spring|winter|the night|llamas].",
            "[Tell|Recite|Give] me a [poem|haiku].",
            "[Can|Could] you write [me |]a [haiku|poem]?",
        ),
        "Small model, few words,\na llama hums in the dark,\nthe next token comes.",
    ),
    (
        "hello world in Python",
        (
            "Write [a |]hello world [program |]in Python.",
            "[Show|Give|Write] me [some |]Python code.",
            "How do I print hello world in Python?",
        ),
        '```python\nprint("Hello, world!")\n```',
    ),
    (
        "hello in Chinese",
        ("Say hello in Chinese.", "How do you say hello in Chinese?", "你好", "你好！"),
        "你好！我是 ollmlx 的演示模型。",
    ),
    (
        "emoji",
        (
            "[Send|Show|Give|Write] me [an emoji|some emoji|some emoji|emoji|emojis].",
            "[Answer|Reply] with emoji.",
            "Do you know emoji?",
        ),
        "🦙🚀🎉👋🌍",
    ),
    (
        "a test",
        ("test", "Test.", "[This is|Just] a test.", "Testing[|, testing].", "Does it work?", "ping"),
        "It works. I am here.",
    ),
)

_TO_WHOM = "[|||||, ollmlx| ollmlx|, demo|, model|, my friend| friend| everyone|, world| world]"

SMALL_TALK: Table = (
    (
        "a greeting",
        (
            f"[Hello|Hi|Hey|Hello|Hi|Hey|Hi there|Hello there|Hallo|Howdy|Greetings]{_TO_WHOM}[!|.|]",
            f"Good [morning|evening|day|morning to you]{_TO_WHOM}[!|.|]",
            "[Hello|Hi|Hey]",
            "[hi|hello|hey][, | ][hi|hey|anyone there|there|again|you][!|?|]",
            "[Hello|Hi], nice to meet you[!|.]",
            "[Please |][say|Say] [hello|hi][.|!|| to me.]",
            "hello world",
            "[Are you there|Is anybody there|Anybody home|You there]?",
            "Hi, is [anyone|somebody] there?",
        ),
        "Hello! I am the ollmlx demonstration model. How can I help you?",
    ),
    (
        "how I am",
        (
            "[|Hello, |Hi, |Hi! |Hey, ]How are you[| today| doing| doing today| feeling]?",
            "How is it going?",
            "How do you feel?",
            "What's up?",
            "How are things?",
            "Are you [well|ok]?",
        ),
        "I am fine, thank you. All my parameters are in place.",
    ),
    (
        "thanks",
        (
            "[Thanks|Thank you|Thank you very much|Many thanks|Thanks a lot|Thanks so much|Thx]"
            f"{_TO_WHOM}[!|.|]",
            "[Great|Perfect|Nice|Cool|Good|Okay|Super|Wonderful|Excellent], [thanks|thank you][!|.|]",
            "[Thanks|Thank you] for [the answer|your answer|helping|helping me|that|the help|everything|"
            "the story|the information][!|.|]",
            "[That helped|That was helpful|I understand|That is great|Very helpful], "
            "[thanks|thank you][| a lot][!|.|]",
            "I [thank you|am grateful|appreciate it|appreciate your help][!|.|]",
        ),
        "You are welcome!",
    ),
    (
        "praise",
        (
            "[Great|Good|Nice|Cool|Perfect|Well done|Good job|Excellent|Wonderful|Awesome][!|.|]",
            "I [like|love] [you|it|this|that][!|.]",
            "That [is|was] [great|good|nice|cool|perfect|a nice story|a good answer][!|.]",
            "You are [great|nice|funny|smart|the best|good][!|.]",
        ),
        "Thank you! I do my best with few parameters.",
    ),
    (
        "a goodbye",
        (
            f"[Goodbye|Bye|Goodbye|Bye|Bye bye|See you|See you later|Good night|Farewell|Good bye|So long|"
            f"Cheers, bye|Ciao|Take care|Until next time|Talk to you later|See you soon]{_TO_WHOM}[!|.|]",
            "[Goodbye|Bye][!|.|]",
            "[Bye|Goodbye], [see you|see you soon|until next time|take care|have a nice day][!|.|]",
            "[Thanks|Thank you|Ok|Okay|Great][,|.|!] [goodbye|bye|see you|good night|bye bye][!|.|]",
            "[I have to go|I must go|I am leaving|I'm off|That is all|That's all]"
            "[| now| for today][.|!|. Bye!|. Goodbye!|, bye!]",
            "See you [next time|next week|again|around|in the morning][!|.|]",
            "Have a [nice|good|great] [day|evening|weekend][!|.|]",
        ),
        "Goodbye! Come back soon.",
    ),
    (
        "an apology",
        ("[Sorry|I am sorry|My mistake|Oops, sorry][!|.|]", "I [made a mistake|am so sorry]."),
        "No problem at all.",
    ),
    (
        "agreement",
        ("[Yes|Ok|Okay|Sure|All right|I see|Yes, please|Right|Understood][!|.|]",),
        "Good. What would you like to know?",
    ),
    ("a refusal", ("[No|No thanks|Nope|Not now|No, thank you][!|.|]",), "All right. Ask me when you like."),
)

COUNTRIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "France": ("Paris", ("French",)),
    "Germany": ("Berlin", ("German",)),
    "Italy": ("Rome", ("Italian",)),
    "Spain": ("Madrid", ("Spanish",)),
    "Portugal": ("Lisbon", ("Portuguese",)),
    "England": ("London", ("English",)),
    "Japan": ("Tokyo", ("Japanese",)),
    "China": ("Beijing", ("Chinese",)),
    "Egypt": ("Cairo", ("Arabic",)),
    "Canada": ("Ottawa", ("English", "French")),
    "Mexico": ("Mexico City", ("Spanish",)),
    "Brazil": ("Brasilia", ("Portuguese",)),
}

_CAPITAL_QUESTIONS = (
    "What [is|'s] the capital [|city ]of {}?",
    "What is the capital of {}?",
    "[Name|Tell me|Do you know] the capital of {}.",
    "Which city is the capital of {}?",
    "[The capital|Capital] of {}?",
)


def capital(rng: random.Random) -> Exchange:
    """A question for the capital of one of the known countries."""
    country = rng.choice(sorted(COUNTRIES))
    city = COUNTRIES[country][0]
    question = expand(rng.choice(_CAPITAL_QUESTIONS), rng).format(country)
    return Exchange(question, f"The capital of {country} is {city}.", f"{country}: the capital is {city}.")
