"""Texts that begin like earlier ones get the tokens that the tokenizer would give them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ollmlx.runner.mlx import text_encoder
from ollmlx.runner.mlx.text_encoder import TextEncoder

# One is the beginning of another, and one takes the blanks around it.
SPECIAL = [AddedToken(t, special=True, normalized=False) for t in ("<s>", "<|turn|>", "<|turn|>x", "<|end|>")]
SPECIAL += [AddedToken("<|blank|>", special=True, normalized=False, lstrip=True, rstrip=True)]
# Words that change with what is before and after them.
WORDS = [
    "the",
    " end",
    "  ",
    "\n",
    "e\u0301",
    "ﬁ",
    "don't",
    "12345",
    "<|tu",
    "rn|>",
    "x",
    "<|end|>",
    "<|turn|>",
    "<|blank|>",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def prepended() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


class Counted(PreTrainedTokenizerFast):
    """Counts the characters that it is given."""

    characters = 0

    def encode(self, text: str, **options: object) -> list[int]:
        self.characters += len(text)
        return super().encode(text, **options)


def trained(make: Callable[[], Tokenizer]) -> Counted:
    tokenizer = make()
    words = [w for w in WORDS if not w.startswith("<|")]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", *SPECIAL])
    tokenizer.train_from_iterator([text(random.Random(i), words, 200) for i in range(20)], trainer)
    return Counted(tokenizer_object=tokenizer)


def text(rng: random.Random, words: list[str], count: int) -> str:
    return "".join(rng.choice(words) for _ in range(count))


@pytest.mark.parametrize("make", [byte_level, metaspace, prepended])
def test_tokens_are_those_of_the_whole_text(make: Callable[[], Tokenizer]) -> None:
    tokenizer = trained(make)
    encoder = TextEncoder(tokenizer)
    rng = random.Random(1)
    texts = [text(rng, WORDS, 900)]
    for _ in range(120):
        # A conversation goes on, or is asked again from some place on.
        before = rng.choice(texts)
        cut = len(before) if rng.random() < 0.5 else rng.randrange(len(before))
        texts.append(before[:cut] + text(rng, WORDS, rng.randrange(60)))
        assert encoder.encode(texts[-1]) == tokenizer.encode(texts[-1], add_special_tokens=False)


@pytest.mark.parametrize(
    ("added", "before", "after"),
    [
        # A longer token that is not special.
        ({"<|t|>": True, "a<|t|>x": False}, "a<|t|>", "x"),
        # Found in more places than it is taken from.
        ({"||": True}, "c|||", "d"),
        ({"<unk>": True, "[<unk>]": True}, "é[<unk>]", "d"),
    ],
)
def test_what_only_looks_like_a_special_token_is_none(
    added: dict[str, bool], before: str, after: str
) -> None:
    pieces = {c: i for i, c in enumerate(["<unk>", *"abcdtx<|>[]unk"])}
    wrapped = Tokenizer(models.BPE(pieces, [], unk_token="<unk>"))
    wrapped.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added.items()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wrapped, unk_token="<unk>")
    encoder = TextEncoder(tokenizer)
    begin = "b" * 3000 + before
    encoder.encode(begin)
    assert encoder.encode(begin + after) == tokenizer.encode(begin + after, add_special_tokens=False)


def test_only_what_is_new_is_tokenized() -> None:
    tokenizer = trained(byte_level)
    encoder = TextEncoder(tokenizer)
    chat = "<|turn|>" + "a long story " * 1000 + "<|end|>"
    encoder.encode(chat)
    other = "<|turn|>" + "another story " * 1000 + "<|end|>"
    encoder.encode(other)
    tokenizer.characters = 0
    for turn in range(5):
        chat += f"<|turn|>and then?<|end|><|turn|>Number {turn}.<|end|>"
        encoder.encode(chat)
    assert tokenizer.characters < 700


def test_texts_that_are_short_or_too_long_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "_MOST", 5000)
    tokenizer = trained(byte_level)
    encoder = TextEncoder(tokenizer)
    for count, remembered in ((1, 0), (600, 1), (1200, 1)):
        text = "<|turn|>" + "hello" * count + "<|end|>"
        assert encoder.encode(text) == tokenizer.encode(text, add_special_tokens=False)
        assert len(encoder._known) == remembered
