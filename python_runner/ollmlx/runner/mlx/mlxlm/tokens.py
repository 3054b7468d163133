"""From token ids to text and log probabilities."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import PreTrainedTokenizerBase

from ollmlx.runner.mlx.mlxlm.batch import Token
from ollmlx.runner.v1 import runner_pb2 as pb


def token_logprob(tokenizer: TokenizerWrapper, token: Token, top: int) -> pb.TokenLogprob:
    """The log probability of a token and of the `top` likeliest ones, likeliest first."""
    entry = _logprob_entry(tokenizer, token.id, token.logprobs[token.id].item())
    if top:
        ids = mx.argpartition(-token.logprobs, kth=top - 1)[:top]
        values = token.logprobs[ids]
        ranked = sorted(zip(values.tolist(), ids.tolist(), strict=True), reverse=True)
        entry.top.extend(_logprob_entry(tokenizer, i, value) for value, i in ranked)
    return entry


def _logprob_entry(tokenizer: TokenizerWrapper, token: int, logprob: float) -> pb.TokenLogprob:
    text = decoder(tokenizer)([token])
    return pb.TokenLogprob(id=token, text=text, bytes=_token_bytes(tokenizer, token, text), logprob=logprob)


def _token_bytes(tokenizer: TokenizerWrapper, token: int, text: str) -> bytes:
    """The bytes of a token that is not UTF-8 on its own, as its vocabulary entry spells them; empty for one
    that is."""
    if "\ufffd" not in text:
        return b""
    spelled = tokenizer.convert_ids_to_tokens(token)
    if spelled.startswith("<0x") and spelled.endswith(">"):
        return bytes([int(spelled[3:-1], 16)])
    table = _byte_of_character()
    if all(c in table for c in spelled):
        return bytes(table[c] for c in spelled)
    return text.encode()


@functools.lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The characters by which byte-level BPE vocabularies spell bytes: printable ones are themselves, the
    rest follow 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def with_tokenizer(wrapper: TokenizerWrapper, tokenizer: PreTrainedTokenizerBase) -> TokenizerWrapper:
    """What mlx-lm knows of a model's tokenizer, for another instance of it: two threads cannot share one."""
    other = copy.copy(wrapper)
    other._tokenizer = tokenizer
    # The wrapper keeps what it found out in the tokenizer that it wraps.
    known = vars(tokenizer)
    known.update({name: value for name, value in vars(wrapper._tokenizer).items() if name not in known})
    return other


def decoder(tokenizer: TokenizerWrapper) -> Callable[[Sequence[int]], str]:
    """Token ids to text, special tokens included.

    The Rust tokenizer is called directly where the Python class adds nothing: this runs twice for every
    token.
    """
    plain = tokenizer._tokenizer
    backend = getattr(plain, "backend_tokenizer", None)
    if backend is not None and type(plain).decode is PreTrainedTokenizerBase.decode:
        return functools.partial(backend.decode, skip_special_tokens=False)
    return functools.partial(plain.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
