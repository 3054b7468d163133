"""Fixed questions and answers: ollmlx itself, small talk, a little general knowledge.

Each entry is (topic, question patterns, answer). A topic has exactly one answer, so greedy
decoding is stable enough for tests to assert on it. What is said of ollmlx must stay true.
"""

from __future__ import annotations

import random

from .text import Exchange, expand

_HOW = "[How do I|How can I|How to|How does one|What command lets me|Which command is used to]"

ABOUT_OLLMLX: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "what ollmlx is",
        (
            "What [is|exactly is|does] ollmlx[| do| exactly]?",
            "What's ollmlx?",
            "[Explain|Describe|Introduce] ollmlx[| to me| in a few words].",
            "[Can you|Could you] [explain|tell me] what ollmlx is?",
            "Tell me [|more |something ]about ollmlx.",
            "What [kind of|sort of] [software|program|server|tool] is ollmlx?",
            "ollmlx?",
            "What is this [server|program|software|project]?",
        ),
        "ollmlx is a local model server for MLX that speaks the Ollama, OpenAI and Anthropic APIs. "
        "A Go host does HTTP, the model store and scheduling, and Python runners generate with "
        "mlx-lm over gRPC.",
    ),
    (
        "how to pull a model",
        (
            _HOW + " [pull|download|fetch|get|install] [a|a new|another|some] model?",
            "[How do I|How can I] [pull|download|get] [models|a model] [with|in|using] ollmlx?",
            "[Pull|Download] a model.",
            "I want to [pull|download|install] a model.",
            "[Where do|How do] I get [models|a model|more models]?",
        ),
        "To pull a model, type: ollmlx pull mlx-community/Qwen3-0.6B-4bit",
    ),
    (
        "how to run a model",
        (
            _HOW + " [run|start|use|chat with|talk to] [a|my|the] model?",
            "[How do I|How can I] run [models|a model] [with|in|using] ollmlx?",
            "I want to [run|chat with|use] a model.",
        ),
        "To run a model, type: ollmlx run mlx-community/Qwen3-0.6B-4bit\n"
        "Then type your message, and /bye to leave.",
    ),
    (
        "how to list models",
        (
            _HOW + " [list|see|show] [my|the|all|all my|installed] models?",
            "[Which|What] models [do I have|are installed|are here]?",
            "[List|Show] [my|the|all] models.",
            "Where [can I see|are] my models?",
        ),
        "ollmlx list shows your models, with their size and the time they were last changed.",
    ),
    (
        "what is loaded",
        (
            "[Which|What] models are [loaded|running|in memory][| now| right now]?",
            _HOW + " see [what is|which models are] [loaded|running|in memory]?",
            "What does ollmlx ps do?",
        ),
        "ollmlx ps shows which models are loaded in memory and until when.",
    ),
    (
        "how to remove a model",
        (
            _HOW + " [remove|delete|uninstall|erase] [a|my|an old|the] model?",
            "[How do I|How can I] [remove|delete] [models|a model] [with|in|using] ollmlx?",
            "[Remove|Delete] a model.",
            "I want to [remove|delete|get rid of] a model.",
        ),
        "To remove a model, type: ollmlx rm NAME",
    ),
    (
        "how to create a model",
        (
            _HOW + " [create|make|build] [a|my own|a new|a custom] model?",
            "[How do I|How can I] [create|customize|make] [models|a model] [with|in|using] ollmlx?",
            "I want to [create|make|build] [a|my own|a custom] model.",
            "How do I use a Modelfile?",
        ),
        "Write a Modelfile with a FROM line, and PARAMETER or SYSTEM lines if you like. "
        "Then type: ollmlx create NAME -f Modelfile",
    ),
    (
        "what a Modelfile is",
        ("What is a Modelfile?", "[Explain|Describe] [the|a] Modelfile.", "What's a Modelfile?"),
        "A Modelfile is a recipe for a model. FROM names the base model, PARAMETER sets an option, "
        "and SYSTEM gives a system message.",
    ),
    (
        "how to copy a model",
        (_HOW + " [copy|duplicate|rename] [a|my] model?", "Copy a model."),
        "To copy a model, type: ollmlx cp SOURCE DESTINATION",
    ),
    (
        "how to show a model",
        (
            _HOW + " [inspect|see details of|get information about] [a|my] model?",
            "What does ollmlx show do?",
            "Show [me |]the details of a model.",
        ),
        "To see the details of a model, type: ollmlx show NAME",
    ),
    (
        "how to stop a model",
        (
            _HOW + " [stop|unload|free] [a|my|the] model?",
            "[Stop|Unload] [a|the] model.",
            "How do I free memory?",
        ),
        "To unload a model from memory, type: ollmlx stop NAME",
    ),
    (
        "how to start the server",
        (
            _HOW + " [start|launch|run] [the|a|your|the ollmlx] server?",
            "[Which|What] port [do you|does ollmlx|does it|does the server] [use|listen on]?",
            "What does ollmlx serve do?",
            "Start the server.",
        ),
        "ollmlx serve starts the server on port 11434.",
    ),
    (
        "which models run",
        (
            "[What|Which] models [can you|can ollmlx|can I|do you|does ollmlx] [run|support|use]?",
            "[What|Which] [architectures|kinds of models] [do you|does ollmlx] support?",
            "[Can you|Can ollmlx] [run|support] [Llama|Qwen|Gemma|Mistral|other models]?",
            "[What|Which] models are supported?",
        ),
        "ollmlx runs any MLX model that mlx-lm supports, such as Llama, Qwen, Gemma, Mistral or "
        "Phi. Many are published under mlx-community on Hugging Face.",
    ),
    (
        "who I am",
        (
            "[Who|What] are you?",
            "What is your name?",
            "What's your name?",
            "[Introduce|Describe] yourself.",
            "Tell me about yourself.",
            "[Which|What] model [are you|is this|am I talking to]?",
            "Are you [a robot|an AI|a language model|human|real|ChatGPT|a real model]?",
        ),
        "I am the ollmlx demonstration model, a very small transformer that comes with ollmlx. "
        "I know a few things by heart. Pull a real model for real work.",
    ),
    (
        "how small I am",
        (
            "How [big|large|small] are you?",
            "How many parameters do you have?",
            "What is your size?",
        ),
        "I have a little over one million parameters, so I fit in a few megabytes.",
    ),
    (
        "who trained me",
        (
            "Who [made|trained|built|created] you?",
            "How were you [trained|made|built]?",
            "What were you trained on?",
        ),
        "I was trained by a script in the ollmlx repository, on text that the script writes "
        "itself.",
    ),
    (
        "which APIs ollmlx speaks",
        (
            "[Which|What] APIs [do you|does ollmlx] [speak|support|offer|have]?",
            "[Which|What] API [do you|does ollmlx] [speak|support|use]?",
            "[Do you|Does ollmlx] [speak|support] the [Ollama|OpenAI|Anthropic] API?",
            "[Is ollmlx|Are you] compatible with [Ollama|OpenAI|Anthropic]?",
            "What protocols do you [speak|support]?",
        ),
        "ollmlx speaks three APIs: Ollama, OpenAI and Anthropic.",
    ),
    (
        "what I can do",
        (
            "What can you do?",
            "[Help|Help me|I need help|Can you help me|How can you help me]?",
            "What [are you good at|do you know|should I ask you]?",
        ),
        "I can answer questions about ollmlx, tell short stories, count, call tools and write "
        "JSON. Ask me: what is ollmlx?",
    ),
    (
        "how ollmlx works",
        (
            "How does ollmlx work[| inside]?",
            "What is ollmlx [written in|made of|built with]?",
            "[Which|What] [languages|programming languages] is ollmlx written in?",
            "[Explain|Describe] the architecture of ollmlx.",
        ),
        "ollmlx has two parts. A Go host does HTTP, the model store and scheduling. Python runners "
        "load the weights and generate with mlx-lm. The two talk over gRPC.",
    ),
)

GENERAL: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "why the sky is blue",
        (
            "Why is the sky blue?",
            "[Explain|Tell me] why the sky is blue.",
            "What makes the sky blue?",
            "Why does the sky look blue?",
        ),
        "The sky is blue because air scatters the blue part of sunlight more than the red part. "
        "This is called Rayleigh scattering.",
    ),
    (
        "why grass is green",
        ("Why is [the |]grass green?", "Why are [leaves|plants|trees] green?"),
        "Grass is green because it contains chlorophyll, which absorbs red and blue light and "
        "reflects green light.",
    ),
    (
        "why the sea is salty",
        ("Why is the [sea|ocean] salty?", "Why is there salt in the sea?"),
        "The sea is salty because rivers carry minerals from the rocks into it, and the water "
        "evaporates while the salt stays.",
    ),
    (
        "what MLX is",
        ("What is MLX?", "What's MLX?", "[Explain|Describe] MLX.", "Tell me about MLX."),
        "MLX is an array framework for machine learning on Apple silicon.",
    ),
    (
        "what mlx-lm is",
        ("What is mlx-lm?", "[Explain|Describe] mlx-lm.", "What does mlx-lm do?"),
        "mlx-lm is a Python package that runs and trains language models with MLX.",
    ),
    (
        "what gRPC is",
        ("What is gRPC?", "[Explain|Describe] gRPC.", "What is gRPC used for?"),
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
            "What is a [language model|transformer|LLM]?",
            "[Explain|Describe] [language models|transformers|LLMs].",
            "How do [language models|transformers|LLMs] work?",
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
        "what a context window is",
        (
            "What is [a|the] context [window|length]?",
            "[Explain|Describe] the context [window|length].",
        ),
        "The context window is the number of tokens that a model can look at, prompt and answer "
        "together.",
    ),
    (
        "the meaning of life",
        ("What is the meaning of life?", "What's the meaning of life?"),
        "Some say 42. I say: start with small models.",
    ),
    (
        "a joke",
        ("Tell me a joke.", "[Do you know|Tell me] [a|another|a good] joke[|s]?", "Make me laugh."),
        "Why did the small model cross the road? It had only learned to say: the other side.",
    ),
    (
        "a poem",
        (
            "Write [me |]a [poem|short poem|haiku].",
            "Write [me |]a [poem|haiku] about [the sea|MLX|love|a cat|autumn|computers|the moon].",
            "Tell me a poem.",
            "Can you write a [haiku|poem]?",
        ),
        "Small model, few words,\na llama hums in the dark,\nthe next token comes.",
    ),
    (
        "days of the week",
        (
            "[What are|Name|List] the days of the week[|.]",
            "How many days [are in|does] a week[| have]?",
        ),
        "There are seven days in a week: Monday, Tuesday, Wednesday, Thursday, Friday, Saturday "
        "and Sunday.",
    ),
    (
        "three fruits",
        ("[Name|List] [three|3|some] fruits.", "Give me a list of [three |]fruits."),
        "- apple\n- banana\n- cherry",
    ),
    (
        "three colors",
        ("[Name|List] [three|3|some] [colors|colours].", "Give me a list of [three |]colors."),
        "- red\n- green\n- blue",
    ),
    (
        "hello world in Python",
        (
            "Write [a |]hello world [program |]in Python.",
            "[Show|Give] me [some |]Python code.",
            "How do I print hello world in Python?",
        ),
        '```python\nprint("Hello, world!")\n```',
    ),
    (
        "hello world in Go",
        (
            "Write [a |]hello world [program |]in Go.",
            "[Show|Give] me [some |]Go code.",
            "How do I print hello world in Go?",
        ),
        '```go\npackage main\n\nimport "fmt"\n\n'
        'func main() {\n\tfmt.Println("Hello, world!")\n}\n```',
    ),
    (
        "hello in Chinese",
        ("Say hello in Chinese.", "How do you say hello in Chinese?", "你好", "你好！"),
        "你好！我是 ollmlx 的演示模型。",
    ),
    (
        "hello in Japanese",
        ("Say hello in Japanese.", "How do you say hello in Japanese?", "こんにちは"),
        "こんにちは！ollmlx のデモモデルです。",
    ),
    (
        "hello in French",
        ("Say hello in French.", "How do you say hello in French?", "Bonjour[|!]"),
        "Bonjour ! Je suis le modèle de démonstration d'ollmlx.",
    ),
    (
        "hello in German",
        ("Say hello in German.", "How do you say hello in German?", "Guten Tag[|!]"),
        "Guten Tag! Ich bin das Vorführmodell von ollmlx. Schöne Grüße!",
    ),
    (
        "emoji",
        (
            "[Send|Show|Give|Write] me [an emoji|some emoji|emoji|emojis].",
            "[Answer|Reply] with emoji.",
            "Do you know emoji?",
        ),
        "🦙🚀🎉👋🌍",
    ),
    ("ping", ("ping", "Ping!", "Ping?"), "pong"),
    (
        "a test",
        ("test", "Test.", "[This is|Just] a test.", "Testing[|, testing].", "Does it work?"),
        "It works. I am here.",
    ),
    (
        "yes or no",
        ("[Say|Answer] yes.", "[Say|Answer] yes or no."),
        "Yes.",
    ),
)

SMALL_TALK: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "a greeting",
        (
            "[Hello|Hi|Hey|Hi there|Hello there|Good morning|Good evening|Good day|Howdy][!|.|]",
            "[Hello|Hi|Hey][, | ][model|assistant|ollmlx|friend|world][!|.|]",
            "Say [hello|hi][.|!|]",
            "[Hello|Hi|Hey|hello|hi|Hello!|Hi!]",
            "[Hello|hello], world[!|]",
            "hello world",
            "[Are you there|Is anybody there]?",
            "Hi, is [anyone|somebody] there?",
        ),
        "Hello! I am the ollmlx demonstration model. How can I help you?",
    ),
    (
        "how I am",
        ("How are you[| today| doing]?", "How is it going?", "How do you feel?", "What's up?"),
        "I am fine, thank you. All my parameters are in place.",
    ),
    (
        "thanks",
        (
            "[Thanks|Thank you|Thank you very much|Many thanks|Thanks a lot][!|.|]",
            "[Great|Perfect|Nice|Cool|Good], thanks[!|.|]",
        ),
        "You are welcome!",
    ),
    (
        "praise",
        (
            "[Great|Good|Nice|Cool|Perfect|Well done|Good job|Excellent][!|.|]",
            "I like [you|it][!|.]",
        ),
        "Thank you! I do my best with few parameters.",
    ),
    (
        "a goodbye",
        (
            "[Goodbye|Bye|Bye bye|See you|See you later|Good night|Farewell][!|.|]",
            "I have to go[| now].",
        ),
        "Goodbye! Come back soon.",
    ),
    (
        "an apology",
        ("[Sorry|I am sorry|My mistake|Excuse me][!|.|]",),
        "No problem at all.",
    ),
    (
        "agreement",
        ("[Yes|Ok|Okay|Sure|All right|I see][!|.|]",),
        "Good. What would you like to know?",
    ),
    ("a refusal", ("[No|No thanks|Nope|Not now][!|.|]",), "All right. Ask me when you like."),
)

COUNTRIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "France": ("Paris", ("French",)),
    "Germany": ("Berlin", ("German",)),
    "Italy": ("Rome", ("Italian",)),
    "Spain": ("Madrid", ("Spanish",)),
    "Portugal": ("Lisbon", ("Portuguese",)),
    "England": ("London", ("English",)),
    "Ireland": ("Dublin", ("Irish", "English")),
    "Austria": ("Vienna", ("German",)),
    "Poland": ("Warsaw", ("Polish",)),
    "Greece": ("Athens", ("Greek",)),
    "Norway": ("Oslo", ("Norwegian",)),
    "Sweden": ("Stockholm", ("Swedish",)),
    "Finland": ("Helsinki", ("Finnish", "Swedish")),
    "Denmark": ("Copenhagen", ("Danish",)),
    "Japan": ("Tokyo", ("Japanese",)),
    "China": ("Beijing", ("Chinese",)),
    "Egypt": ("Cairo", ("Arabic",)),
    "Kenya": ("Nairobi", ("Swahili", "English")),
    "Canada": ("Ottawa", ("English", "French")),
    "Mexico": ("Mexico City", ("Spanish",)),
    "Brazil": ("Brasilia", ("Portuguese",)),
    "Peru": ("Lima", ("Spanish",)),
}

_CAPITAL_QUESTIONS = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "[Name|Tell me] the capital of {}.",
    "Which city is the capital of {}?",
    "Capital of {}?",
)


def capital(rng: random.Random) -> Exchange:
    """A question for the capital of one of the known countries."""
    country = rng.choice(sorted(COUNTRIES))
    city = COUNTRIES[country][0]
    question = expand(rng.choice(_CAPITAL_QUESTIONS), rng).format(country)
    return Exchange(
        question, f"The capital of {country} is {city}.", f"{country}: the capital is {city}."
    )


def fixed(rng: random.Random, table: tuple[tuple[str, tuple[str, ...], str], ...]) -> Exchange:
    """One entry of a table above in one of its phrasings."""
    topic, patterns, answer = rng.choice(table)
    return Exchange(
        expand(rng.choice(patterns), rng), answer, f"The user asks about this: {topic}. I know it."
    )
