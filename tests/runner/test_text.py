"""Incremental decoding and marker scanning give the same as looking at the whole text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ollmlx.runner.mlx.text import Detokenizer, MarkerScanner
from tests.support.tiny_models import write_tokenizer

TEXTS = [
    "plain",
    " leading space",
    "Grüße aus Köln",
    "你好, 世界",
    "🏳️‍🌈🤷🏽‍♀️ flags",
    "tab\tand\nnewline",
    "\ufffd itself",
]


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def pieces(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.decode, tokenizer.encode(prompt).ids)
    return [*(detokenizer.add(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("prompt", ["", "Hello", "half a character: 你"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_text(bytes_tokenizer: Tokenizer, prompt: str, text: str) -> None:
    ids = bytes_tokenizer.encode(text).ids
    assert "".join(pieces(bytes_tokenizer, prompt, ids)) == text


def test_characters_are_never_split(bytes_tokenizer: Tokenizer) -> None:
    got = pieces(bytes_tokenizer, "", bytes_tokenizer.encode("a🌍b").ids)
    assert [p for p in got if p] == ["a", "🌍", "b"]


def test_an_incomplete_character_comes_out_at_the_end(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("a🌍").ids[:-1]
    assert "".join(pieces(bytes_tokenizer, "", ids)) == "a\ufffd"


def test_random_bytes_come_out_and_in_bounded_time(bytes_tokenizer: Tokenizer) -> None:
    ids = random.Random(1).choices(range(256), k=2000)
    got = pieces(bytes_tokenizer, "", ids)
    assert "".join(got) == bytes_tokenizer.decode(ids)
    held = longest = 0
    for piece in got:
        held = 0 if piece else held + 1
        longest = max(longest, held)
    assert longest < 16


def scan(scanner: MarkerScanner, text: str, size: int) -> list[tuple[str, str | None]]:
    found = []
    for start in range(0, len(text), size):
        scanner.feed(text[start : start + size])
        while (item := scanner.next()) is not None:
            found.append(item)
    found.append((scanner.flush(), None))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_markers_are_found_however_the_text_arrives(size: int) -> None:
    found = scan(MarkerScanner(["<think>", "</think>"]), "a<b<think>c</thin></think>d<thi", size)
    assert [m for _, m in found if m] == ["<think>", "</think>"]
    assert "".join(t + (m or "") for t, m in found) == "a<b<think>c</thin></think>d<thi"


def test_the_first_marker_wins_and_the_longer_of_two() -> None:
    scanner = MarkerScanner(["b", "abc", "ab"])
    scanner.feed("xabc")
    assert scanner.next() == ("x", "abc")


def test_text_that_cannot_begin_a_marker_is_not_held() -> None:
    scanner = MarkerScanner(["</think>"])
    scanner.feed("a < b")
    assert scanner.next() == ("a < b", None)
    scanner.feed(" <")
    assert scanner.next() == (" ", None)
    assert scanner.next() is None
    scanner.feed("c")
    assert scanner.next() == ("<c", None)
