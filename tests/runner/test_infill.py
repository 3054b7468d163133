"""Fill in the middle with the tokens that a tokenizer has for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlx_lm.tokenizer_utils import load

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.mlx.prompt import encode_prompt
from ollmlx.runner.mlx.text_encoder import TextEncoder
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_models import write_tokenizer

PROMPT = pb.Prompt(text="def f(", suffix="return x")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
            "<|fim_prefix|>def f(<|fim_suffix|>return x<|fim_middle|>",
        ),
        (
            ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
            "<fim_prefix>def f(<fim_suffix>return x<fim_middle>",
        ),
        (
            ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
            "<｜fim▁begin｜>def f(<｜fim▁hole｜>return x<｜fim▁end｜>",
        ),
        (["[PREFIX]", "[SUFFIX]", "[MIDDLE]"], "[SUFFIX]return x[PREFIX]def f("),
    ],
)
def test_prompt_form(tmp_path: Path, tokens: list[str], expected: str) -> None:
    write_tokenizer(tmp_path, extra_tokens=tokens)
    tokenizer = load(tmp_path)
    assert tokenizer.decode(encode_prompt(TextEncoder(tokenizer), PROMPT)) == expected


def test_a_tokenizer_without_the_tokens_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, extra_tokens=["<|fim_prefix|>"])
    with pytest.raises(RunnerError, match="insert"):
        encode_prompt(TextEncoder(load(tmp_path)), PROMPT)


def test_an_empty_suffix_is_a_suffix(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, extra_tokens=["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    tokenizer = load(tmp_path)
    text = tokenizer.decode(encode_prompt(TextEncoder(tokenizer), pb.Prompt(text="a", suffix="")))
    assert text == "<fim_prefix>a<fim_suffix><fim_middle>"
