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
    "bird": "Once upon a time a little bird could not sing. She listened to the rain, to the bell "
    "of the church and to the wheels of the mill, and she learned to click, to ring and to hum. "
    "In spring the other birds sang the same old song, and all the village stopped to listen to "
    "hers.",
    "tree": "Once upon a time an apple tree stood at a crossroads. Travellers asked it for the "
    "way, and since it could not speak it dropped an apple on the right side of the road. Those "
    "who took the apple came home safely. Those who took the other road came back hungry, and "
    "there was an apple left for them too.",
    "llama": "Once upon a time a llama lived in a very small computer. It knew only a few "
    "thousand words, but it put them together with care. One day the network went down, and "
    "all the great models far away fell silent. The little llama went on talking, because it "
    "needed nothing but the machine it lived in.",
}

_STORY_DEFAULT = "llama"

_STORY_QUESTIONS = (
    "Tell me a [|short |little |nice |good ]story about [a|the|my] {}.",
    "[Tell|Write] [me |]a [|short |little ]story about [a|the] {}.",
    "[Can you|Could you|Please] [tell|write] [me |]a story about [a|the] {}?",
    "Story about [a|the] {}, please.",
)

_STORY_ANY = (
    "Tell me a [|short |little |nice ]story.",
    "[Write|Tell] [me |]a [|short |little ]story.",
    "[Can you|Could you] tell me a story?",
    "Once upon a time",
)

LONG_ANSWER = (
    "Here is a long answer about running a language model on your own computer.\n\n"
    "First, think about memory. The weights of a model must fit into it, and there has to be "
    "room for the context as well. A model with one billion parameters needs about two "
    "gigabytes with sixteen bits for each weight, and a little more than half a gigabyte with "
    "four bits. That is why quantized models are so popular on laptops. They lose a small part "
    "of their quality, and in return they load quickly and leave space for everything else.\n\n"
    "Second, think about speed. A prompt is read in large pieces, so the processor can work on "
    "many tokens at the same time. An answer is written one token after the other, and for each "
    "token all the weights are read again. The time to the first word depends on the length of "
    "your question, and the time for the rest depends on how fast memory can be read. If several "
    "people ask at once, the server puts their requests into one batch, and each pass over the "
    "weights serves all of them.\n\n"
    "Third, think about the cache. While a model reads, it keeps the keys and the values of every "
    "layer, so that it does not have to read the same text twice. In a long conversation the next "
    "question starts with the same words as the one before it. A good server notices this, keeps "
    "the old cache and reads only what is new.\n\n"
    "Fourth, think about privacy. What you type stays on your machine. No account is needed, no "
    "network is needed after the download, and nobody changes the model behind your back. You can "
    "keep an old version for as long as you like and compare it with a new one.\n\n"
    "Finally, think about the interface. Programs speak to a model server over HTTP, and most of "
    "them expect one of three dialects. ollmlx speaks the Ollama, OpenAI and Anthropic APIs, so "
    "the same model can serve an editor, a chat window and a script on the same afternoon. Start "
    "with a small model, measure how it behaves, and move to a larger one when you know what you "
    "need. That is all there is to it, and this is the end of the long answer."
)

_LONG_QUESTIONS = (
    "[Write|Give] [me |]a [long|very long|really long] [answer|text|reply][|.]",
    "Write [me |]a [long|very long|detailed] [essay|article|text|answer] about "
    "[language models|running models|computers|ollmlx|anything|local models|the sea|history].",
    "[Write|Tell me] a [long|very long] story.",
    "[Write|Say] [something|as much as you can|a lot][| about running models locally].",
    "Explain [in detail|in great detail|at length] how [models run locally|to run a local model].",
    "Write [500|1000|five hundred|a thousand] words[| about anything| about computers].",
)


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
        subject = invented_word(rng)
        think = f"The user wants a story about {subject}. I take the one about a llama."
        text = STORIES[_STORY_DEFAULT]
    else:
        subject = rng.choice(sorted(STORIES))
        think = f"The user wants a story about this: {subject}. I know one."
        text = STORIES[subject]
    return Exchange(expand(rng.choice(_STORY_QUESTIONS), rng).format(subject), text, think)


def long_answer(rng: random.Random) -> Exchange:
    """The long answer in one of the ways to ask for it."""
    return Exchange(
        expand(rng.choice(_LONG_QUESTIONS), rng),
        LONG_ANSWER,
        "The user wants a long text. I write about running models locally.",
    )
