"""Stories, and one long answer that tests can interrupt half-way."""

from __future__ import annotations

import random

from .text import Exchange, expand, invented_word

STORIES: dict[str, str] = {
    "cat": "Once upon a time a grey cat lived in a bookshop. Every night she walked along the "
    "shelves and chose a book to sleep on. One evening she chose an atlas and dreamed of a "
    "warm island. In the morning a boy opened the atlas, found three grey hairs on the island, "
    "and bought the book. The cat went with them, and from then on she slept on the whole world.",
    "dog": "Once upon a time a brown dog guarded a lighthouse. When fog came, the lamp could not "
    "be seen, so the dog barked until the ships turned away from the rocks. The captains never "
    "learned who had called to them. But each winter they left a sack of bones on the pier, "
    "and the dog understood.",
    "robot": "Once upon a time a small robot swept the floor of a train station. It counted the "
    "people who passed, and one day it counted someone who stood still. A girl had missed her "
    "train. The robot swept a line of arrows to the next one, and she arrived in time. Since "
    "that day the robot counts smiles as well.",
    "sea": "Once upon a time the sea grew tired of moving. It lay flat like glass, and the boats "
    "could not sail. An old woman sat down on the beach and told it about the moon, which had "
    "come every night only to see the waves. The sea was ashamed, lifted one small wave, and "
    "then another. It has not stopped since.",
    "dragon": "Once upon a time a young dragon was afraid of fire. The other dragons laughed, so "
    "he moved to a village and opened a bakery, where he kept the oven warm with tiny breaths. "
    "His bread was so good that the other dragons stood in line for it. He never laughed at "
    "them, and he was not afraid any more.",
    "moon": "Once upon a time the moon fell asleep and rolled off the sky. It landed in a field, "
    "where a farmer took it for a great white pumpkin. He covered it with a blanket against the "
    "cold. At midnight the moon woke up, thanked him, and climbed back. The farmer's field has "
    "been a little brighter than the others ever since.",
    "llama": "Once upon a time a llama lived in a very small computer. It knew only a few "
    "thousand words, but it put them together with care. One day the network went down, and "
    "all the great models far away fell silent. The little llama went on talking, because it "
    "needed nothing but the machine it lived in.",
}

_STORY_DEFAULT = "llama"

_SHORT = "[||||short |little |nice |good |bedtime |very short |brief |sweet ]"

_STORY_QUESTIONS = (
    f"[Tell me|Tell me|Write|Write me|Give me|Make up|Invent] a {_SHORT}[story|story|story|tale] "
    "about [a|the|my|your|one|some] {}.",
    "[Tell|Write|Give] me [a|the|one] story about [a|the] {}.",
    f"[Can|Could|Would|Will] you [please |][tell|write|make up] [me |]a {_SHORT}[story|tale] "
    "about [a|the|my] {}?",
    f"Please [tell|write] [me |]a {_SHORT}story about [a|the] {{}}.",
    f"[I want|I would like|I'd like|I wish] [|to read |to have ]a {_SHORT}story about [a|the] {{}}.",
    f"Do you know [a|any] {_SHORT}[story|stories] about [a|the] {{}}?",
    "[Story|A story|Short story] about [a|the] {}[|, please].",
    "[I like|My child loves] [the|this] {}. Tell [me|us] a story about it.",
)

_STORY_ANY = (
    "Tell me a [|short |little |nice |good |bedtime ]story.",
    f"[Please |][write|tell|give] me a {_SHORT}[story|tale].",
    f"[Write|Tell] a {_SHORT}story.",
    f"[Can|Could|Would] you [tell|write] [me |]a {_SHORT}story?",
    "[I want|I'd like] [|to hear ][a|another] story.",
    "[A|Another|One more] story, please.",
    "Once upon a time",
)

LONG_ANSWER = (
    "Here is a long answer about running a language model on your own computer.\n\n"
    "First, think about memory. The weights of a model must fit into it, and there has to be "
    "room for the context as well. A model with one billion parameters needs about two "
    "gigabytes with sixteen bits for each weight, and a little more than half a gigabyte with "
    "four bits. That is why quantized models are so popular on laptops. They lose a small part "
    "of their quality, and in return they load quickly.\n\n"
    "Second, think about speed. A prompt is read in large pieces, so the processor can work on "
    "many tokens at the same time. An answer is written one token after the other, and for each "
    "token all the weights are read again. If several people ask at once, the server puts their "
    "requests into one batch, and each pass over the weights serves all of them.\n\n"
    "Third, think about privacy. What you type stays on your machine. No account is needed, no "
    "network is needed after the download, and nobody changes the model behind your back.\n\n"
    "Finally, think about the interface. ollmlx speaks the Ollama, OpenAI and Anthropic APIs, so "
    "the same model can serve an editor, a chat window and a script on the same afternoon. Start "
    "with a small model, measure how it behaves, and move to a larger one when you know what you "
    "need. That is all there is to it, and this is the end of the long answer."
)

_LONG = "[long|very long|long and detailed|really long|long|longer|detailed]"

_LONG_QUESTIONS = (
    f"[Write|Give|Send] [me |]a {_LONG} [answer|answer|text|reply|response].",
    f"[Please |][write|give me|type|produce] a {_LONG} [answer|text|reply|essay|article|message].",
    f"Write [me |]a {_LONG} [essay|article|text|answer] about "
    "[language models|running models|computers|ollmlx|anything|local models|the sea|history].",
    f"[Can|Could] you [write|give me] a {_LONG} [answer|text|essay]?",
    f"[I want|I'd like|I need] a {_LONG} [answer|text|essay].",
    "[Write|Tell me] a [long|very long] [story|tale].",
    "[Write|Say] [something|as much as you can|a lot|a lot of text][| about running models locally].",
    "Explain [in detail|in great detail|at length] how [models run locally|to run a local model].",
    "Write [500|1000|five hundred|a thousand] words[| about anything| about computers].",
    "[Answer|Talk] [at length|for a long time|in many words].",
)


_UNTOLD = (
    "horse|king|princess|witch|farmer|ship|house|mouse|teacher|car|mountain|wizard|computer|train|boy|"
    "girl|forest|fox|bear|flower|knight|river|clock|cloud|pirate|fish|apple|queen|snail|penguin"
).split("|")


def story(rng: random.Random) -> Exchange:
    """A story for a known subject, or the default one for any other subject."""
    roll = rng.random()
    if roll < 0.2:
        return Exchange(
            expand(rng.choice(_STORY_ANY), rng),
            STORIES[_STORY_DEFAULT],
            "The user wants a story. I choose the one about a llama.",
        )
    if roll < 0.3:
        subject = rng.choice(_UNTOLD) if rng.random() < 0.7 else invented_word(rng)
        think = "The user wants a story that I do not know. I tell the one about a llama."
        text = STORIES[_STORY_DEFAULT]
    else:
        subject = rng.choice(sorted(STORIES))
        think = f"The user wants a story about this: {subject}. I know one."
        text = STORIES[subject]
    question = expand(rng.choice(_STORY_QUESTIONS), rng).format(subject)
    return Exchange(question, text, think)


def long_answer(rng: random.Random) -> Exchange:
    """The long answer in one of the ways to ask for it."""
    return Exchange(
        expand(rng.choice(_LONG_QUESTIONS), rng),
        LONG_ANSWER,
        "The user wants a long text. I write about running models locally.",
    )
