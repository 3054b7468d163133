"""Fixed questions and answers about ollmlx itself.

Each entry is (topic, question patterns, answer). A topic has exactly one answer, so greedy
decoding is stable enough for tests to assert on it. What is said of ollmlx must stay true.
"""

from __future__ import annotations

import random

from .text import Exchange, expand

Table = tuple[tuple[str, tuple[str, ...], str], ...]

# Ways to ask for a command; each is followed by a verb and ends the sentence with a mark.
_HOW = (
    "[How [do|can|do|can|would|should|could|must] I|How do [you|we]|How to|How does one|"
    "What [is|'s] the [command|way|best way] to|[What|Which] command [lets me|do I use to|is used to]|"
    "What do I [type|do|need|need to do|have to type] to|Is there a [way|command] to|Can I|"
    "[Can|Could] you [tell|show|explain to] me how to|[Please |][tell|show] me how to|"
    "[Please explain|Explain] how to|Do you know how to|How is it possible to|How am I supposed to]"
)
_WISH = (
    "[I want to|I would like to|I'd like to|I need to|Help me|Help me to|I am trying to|"
    "I'm trying to|Let me|How about I|I wish to|We want to]"
)
_WITH = "[||||| with ollmlx| in ollmlx| using ollmlx| here| on my [computer|machine|Mac|laptop]| now]"


def _how(action: str) -> tuple[str, ...]:
    """Patterns that ask how to do ``action``, which is a pattern itself."""
    return (
        f"{_HOW} {action}{_WITH}?",
        f"{_HOW} {action}{_WITH}?",
        f"{_WISH} {action}{_WITH}.",
        f"{_WISH} {action}{_WITH}[.|, how|. How|. What do I type|, what do I do]?",
    )


_A = "[a|a|a|a new|another|some|one|the|this|that|my|any]"
_MODEL = "[model|model|model|model|LLM|language model|MLX model]"
_A_MODEL = f"[{_A} {_MODEL}|{_A} {_MODEL}|models|models|new models|some models]"
_MY_MODELS = "[my|the|all|all my|all the|all of my|installed|all installed|local|downloaded|available] models"

ABOUT_OLLMLX: Table = (
    (
        "what ollmlx is",
        (
            "What [is|'s|exactly is|does|kind of thing is|on earth is] ollmlx[| do| exactly| again]?",
            "What is ollmlx[?|?|, exactly?| for?| about?| used for?| good for?]",
            "What is [this|the] ollmlx [thing|program|software|tool|project]?",
            "[Please |][Explain|Describe|Introduce|Define|Summarize] ollmlx"
            "[| to me| in a few words| in one sentence| briefly| for me].",
            "[Can|Could|Would|Will] you [please |][explain|tell me|describe|say] what ollmlx [is|does].",
            "[Can|Could] you [please |][explain|describe|introduce] ollmlx[| to me]?",
            "[Please |][explain|tell me|say] what ollmlx [is|does|is for].",
            "[Please |][Tell me|I want to know|I would like to know] "
            "[|more |something |a bit |what you know ]about ollmlx.",
            "What [kind of|sort of|type of] [software|program|server|tool|thing] is ollmlx?",
            "[Give|Write] me [a|a brief|a quick] [summary|description|overview|explanation] of ollmlx.",
            "What do you know about ollmlx?",
            "What should I know about ollmlx?",
            "I do not know [ollmlx|what ollmlx is][.|. Can you explain it?]",
            "ollmlx?",
            "About ollmlx.",
            "What is this [server|program|software|project]?",
            "Why [should|would] I use ollmlx?",
            "Is ollmlx [a server|like Ollama|a model server|open source]?",
            "I [heard of|found|just installed|have] ollmlx[. What is it?|, what is it?]",
        ),
        "ollmlx is a local model server for MLX that speaks the Ollama, OpenAI and Anthropic APIs. "
        "A Go host does HTTP, the model store and scheduling, and Python runners generate with "
        "mlx-lm over gRPC.",
    ),
    (
        "how to pull a model",
        (
            *_how(
                f"[pull|pull|download|download|fetch|get|install|obtain|add|load down] {_A_MODEL}"
                "[||||| from Hugging Face| from the hub| from the internet]"
            ),
            "[Pull|Download|Install|Get] [a|a new|another] model[| for me].",
            "[Where|How|From where] [do|can] I [get|find|download] [models|a model|more models|new models]?",
            "[What does|What is|Explain] [ollmlx pull|the pull command][| do| for]?",
            "[Which|What is the] command [for pulling|for downloading|to download|pulls|gets|fetches] "
            "[models|a new model|new models]?",
            "[Pulling|Downloading|Installing] a model.",
            "I have no model[s|]. [What now|What do I do|How do I get one]?",
        ),
        "To pull a model, type: ollmlx pull mlx-community/Qwen3-0.6B-4bit",
    ),
    (
        "how to run a model",
        (
            *_how(f"[run|run|start|use|chat with|talk to|try|try out|launch|execute|work with] {_A_MODEL}"),
            *_how("[start|begin|open|have] a [chat|conversation]"),
            "[Run|Start|Launch] [a|the|my] model[| for me].",
            "[What does|What is|Explain] [ollmlx run|the run command][| do| for]?",
            "[And how|How] [do|can] I [run|use|start|try] [it|one|this model]?",
            "[Which|What is the] command [for running|to run|runs|starts] [models|a model|my model]?",
            "[Running|Starting] a model.",
            "How do I [ask a model a question|get an answer from a model|chat|use this]?",
        ),
        "To run a model, type: ollmlx run mlx-community/Qwen3-0.6B-4bit and then your message. "
        "Type /bye to leave.",
    ),
    (
        "how to list models",
        (
            *_how(f"[list|list|list|see|show|view|display|find|get a list of|look at] {_MY_MODELS}"),
            *_how("[list|list|see|show|view] [models|the models I have|what models I have]"),
            "[Which|What] models [do I have|are installed|are here|are there|have I got|are available|"
            "do I have installed|are on my [computer|machine|disk]|did I download|have I downloaded]"
            "[|| here| locally| now]?",
            "[Please |][list|show|show me|give me|display] [my|the|all|all the|all installed] models"
            "[|| I have| please| on my machine].",
            "[Where|How] [can|do] I [see|find|list|look at] [my|the|installed|downloaded] models?",
            "Where are my models?",
            "[What does|What is|Explain] [ollmlx list|the list command|ollmlx ls][| do| for]?",
            "[Is there|Give me|I need] a list of [my|all|the|installed] models[?|.]",
            "[And how|How] [do|can] I list [them|mine]?",
            "Do I have any models?",
            "How many models do I have?",
        ),
        "To list your models, type: ollmlx list",
    ),
    (
        "what is loaded",
        (
            "[Which|What] models are [|currently |now ][loaded|running|in memory|active|in use]"
            "[|| now| right now| at the moment| in memory| on the server]?",
            "[Which|What] [model|models] [is|are] [loaded|running|in memory][| now| right now]?",
            *_how(
                "[see|check|know|find out|list|show] [what is|what's|which models are|which model is|"
                "the models that are] [loaded|running|in memory|in use]"
            ),
            *_how("[see|list|show|check] [loaded|running|the loaded|the running|all running] models"),
            "[What does|What is|Explain] [ollmlx ps|ps|the command ollmlx ps][| do| for| show]?",
            "[What|Which model] is [running|loaded][| now| right now| at the moment]?",
            "[Is a model|Are any models|Is anything] [loaded|running|in memory]?",
            "[Show|List] [me |][the |][running|loaded] models.",
        ),
        "ollmlx ps shows which models are loaded in memory and until when.",
    ),
    (
        "how to remove a model",
        (
            *_how(
                f"[remove|remove|delete|delete|uninstall|erase|drop|throw away|rm] "
                f"[{_A_MODEL}|{_A_MODEL}|an old model|old models|a model that I do not need]"
            ),
            *_how("[remove|delete] [a|the] model[| from [disk|my disk|the disk|the store|my computer]]"),
            *_how("get rid of [my model|old models|this model|that model|the model|models]"),
            "[Remove|Delete|Uninstall|Erase] [a|the|my|this] model[| for me].",
            "[What does|What is|Explain] [ollmlx rm|the rm command][| do| for]?",
            "[And how|How] [do|can] I [remove|delete|get rid of|uninstall] [it|one|them|this model]?",
            "[Which|What is the] command [for removing|for deleting|removes|deletes] [models|a model]?",
            "[A|My] model [is no longer needed|takes too much space][. How do I delete it|]?",
            "[Removing|Deleting] a model.",
            "How do I free disk space?",
        ),
        "To remove a model, type: ollmlx rm NAME",
    ),
    (
        "how to create a model",
        (
            *_how(
                "[create|create|make|build|define|write|set up|customize] [a|my own|my own|a new|a custom|"
                "an own|my] model[|||| of my own| with a Modelfile| with a system prompt| from a directory]"
            ),
            *_how("[create|make|build] [models|custom models|my own models|new models]"),
            *_how("[use|write|make] [a|the|my] Modelfile"),
            "[Create|Make|Build] [a|my own|a custom|a new] model[| for me].",
            "[What does|What is|Explain] [ollmlx create|the create command][| do| for]?",
            "[And how|How] [do|can] I [create|make|build] one?",
            "[Which|What is the] command [for creating|to create|creates|makes] [models|a model]?",
            "[Creating|Making] a [model|custom model].",
        ),
        "Write a Modelfile with a FROM line, and PARAMETER or SYSTEM lines if you like. "
        "Then type: ollmlx create NAME -f Modelfile",
    ),
    (
        "what a Modelfile is",
        (
            "What [is|'s|exactly is] [a|the] Modelfile[| exactly]?",
            "[Please |][Explain|Describe] [the|a] Modelfile[| to me].",
            "[Can you|Could you] [tell me|explain] what a Modelfile is?",
            "What [is in|goes into|do I write in|stands in|belongs in] a Modelfile?",
            "Tell me about [Modelfiles|the Modelfile].",
            "What are Modelfiles[| for| good for]?",
        ),
        "A Modelfile is a recipe for a model. FROM names the base model, PARAMETER sets an option, "
        "and SYSTEM gives a system message.",
    ),
    (
        "how to copy a model",
        (
            *_how("[copy|copy|duplicate|rename|clone] [a|my|the|this] model"),
            "[Copy|Rename] [a|my|the] model.",
            "[What does|What is] [ollmlx cp|the cp command][| do| for]?",
        ),
        "To copy a model, type: ollmlx cp SOURCE DESTINATION",
    ),
    (
        "how to show a model",
        (
            *_how(
                "[inspect|see details of|see the details of|get information about|show information about] "
                "[a|my|the|this] model"
            ),
            "[What does|What is] [ollmlx show|the show command][| do| for]?",
            "Show [me |]the details of [a|my|this] model.",
        ),
        "To see the details of a model, type: ollmlx show NAME",
    ),
    (
        "how to stop a model",
        (
            *_how("[stop|stop|unload|free|quit] [a|my|the|a running|this] model[| from memory]"),
            "[Stop|Unload] [a|the|my] model.",
            "How do I free [memory|the memory|RAM]?",
            "[What does|What is] [ollmlx stop|the stop command][| do| for]?",
            "[And how|How] [do|can] I [stop|unload] it?",
        ),
        "To unload a model from memory, type: ollmlx stop NAME",
    ),
    (
        "how to start the server",
        (
            *_how("[start|start|launch|run|bring up|boot] [the|a|your|the ollmlx|an ollmlx|my] server"),
            *_how("[serve|serve models|start ollmlx|start serving|launch ollmlx|serve a model]"),
            "[Which|What|On which|On what] [port|address] "
            "[do you|does ollmlx|does it|does the ollmlx server|does your server] "
            "[use|run on|listen on|listen to]?",
            "[Which|What] is the [port|address|default port][| of the server| of ollmlx]?",
            "[What does|What is|Explain] [ollmlx serve|the serve command][| do| for]?",
            "Start [the|a] server.",
            "[Which|What is the] command [starts|to start|for starting] the server?",
            "[Where|On which port] is the server?",
        ),
        "To start the server, type: ollmlx serve. It listens on port 11434.",
    ),
    (
        "which models run",
        (
            "[What|Which] [models|model|LLMs] [can you|can ollmlx|can I|do you|does ollmlx|could I] "
            "[run|support|use|serve|load]?",
            "[What|Which] models [can I run|can I use|work|run|are supported] "
            "[with ollmlx|in ollmlx|here|by ollmlx|on ollmlx]?",
            "[What|Which] [architectures|kinds of models|model families|types of models] "
            "[do you|does ollmlx|can ollmlx] [support|run]?",
            "[Can you|Can ollmlx|Can I|Does ollmlx|Do you] [run|support|use|serve] "
            "[Llama|Qwen|Gemma|Mistral|Phi|other models|bigger models|any model|all models]?",
            "[What|Which] models are supported?",
            "[Is|Are] [Llama|Qwen|Gemma|Mistral|Phi] [|models ]supported?",
        ),
        "ollmlx runs any MLX model that mlx-lm supports, such as Llama, Qwen, Gemma, Mistral or "
        "Phi. Many are published under mlx-community on Hugging Face.",
    ),
    (
        "who I am",
        (
            "[Who|What] are you[|| really| actually]?",
            "[Who|What] [exactly |]are you?",
            "[Who are you|What are you] and what [can you do|do you do]?",
            "What [is|'s] your name?",
            "[Please |][Introduce|Describe] yourself.",
            "[Please |][Tell me|Say] [|something |a bit ]about yourself.",
            "[Can|Could] you introduce yourself?",
            "Who am I [talking|speaking|chatting] [to|with]?",
            "[Which|What] model [are you|is this|am I talking to|am I using]?",
            "[Which|What] [kind of|sort of] [model|program|thing|bot|AI] are you?",
            "Are you [a robot|an AI|a language model|human|real|ChatGPT|a real model|a bot|Llama|a person]?",
            "Do you have a name?",
            "Tell me who you are.",
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
            "Who [made|trained|built|created|wrote] you?",
            "How were you [trained|made|built|created]?",
            "What were you trained on?",
            "Where do you come from?",
        ),
        "I was trained by a script in the ollmlx repository, on text that the script writes itself.",
    ),
    (
        "which APIs ollmlx speaks",
        (
            "[Which|What] [APIs|API|interfaces|protocols] [do you|does ollmlx|does the server|does it] "
            "[speak|support|offer|have|provide|use|understand]?",
            "[Do you|Does ollmlx|Can ollmlx] [speak|support|have|offer|use] "
            "[the|an] [Ollama|OpenAI|Anthropic] API?",
            "[Is ollmlx|Are you|Is it] compatible with [Ollama|OpenAI|Anthropic|the OpenAI API]?",
            "[Can|May|How do] I use [the|an] [OpenAI|Anthropic|Ollama] [client|API|library] with ollmlx?",
            "Is there an API?",
            "Tell me about [the|your] [API|APIs].",
            "[How do I|How can I] [call|use] the API?",
        ),
        "ollmlx speaks three APIs: Ollama, OpenAI and Anthropic.",
    ),
    (
        "what I can do",
        (
            "What can you do[| for me| to help]?",
            "What [do you do|are you able to do|are your skills]?",
            "[Help|Help me|I need help|Can you help me|How can you help me|I need some help]?",
            "What [are you good at|do you know|should I ask you|can I ask you|can I ask|can I do here]?",
            "What [questions can I ask|else can you do|else do you know]?",
        ),
        "I can answer questions about ollmlx, tell short stories, call tools and write JSON. "
        "Ask me: what is ollmlx?",
    ),
    (
        "how ollmlx works",
        (
            "How does [ollmlx|it|this server] work[| inside]?",
            "What is ollmlx [written in|made of|built with|built on|based on]?",
            "[Which|What] [languages|programming languages] is ollmlx written in?",
            "[Explain|Describe|Tell me about] [the architecture of ollmlx|how ollmlx works|the parts of "
            "ollmlx].",
        ),
        "ollmlx has two parts. A Go host does HTTP, the model store and scheduling. Python runners "
        "load the weights and generate with mlx-lm. The two talk over gRPC.",
    ),
)


def fixed(rng: random.Random, table: Table) -> Exchange:
    """One entry of a table above in one of its phrasings."""
    topic, patterns, answer = rng.choice(table)
    question = expand(rng.choice(patterns), rng).replace(" 's", "'s")
    question = question[0].upper() + question[1:] if rng.random() < 0.95 else question
    return Exchange(question, answer, f"The user asks about this: {topic}. I know it.")
