"""Sampling as Ollama does it: penalties, then top_k, softmax at temperature, top_p, min_p, then the draw.

A sampler takes log probabilities of shape (rows, vocabulary) and returns token ids of shape (rows,). Samplers
with equal settings are one object, because the batch calls a sampler once for all rows only when all rows
hold the same object.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from ollmlx.runner import options as checked
from ollmlx.runner.errors import internal
from ollmlx.runner.mlx.constraint import Constraint
from ollmlx.runner.v1 import runner_pb2 as pb

Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]

# Below this the softmax would overflow and is an argmax anyway.
_GREEDY_TEMPERATURE = 1e-4

_UINT64 = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class SamplerSettings:
    """Validated settings of a sampler; equal settings share a sampler."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float


def settings_from_options(options: pb.Options, vocab_size: int) -> SamplerSettings:
    """Check the options of a request; raises INVALID_ARGUMENT that names the one that is wrong.

    A top_k beyond the vocabulary is all tokens: handed on, it would break the compiled sampler for every
    later request.
    """
    temperature = checked.temperature(options)
    top_k = options.top_k if options.HasField("top_k") else 0
    if temperature < _GREEDY_TEMPERATURE:
        return SamplerSettings(0.0, 0, 1.0, 0.0, 1.0)
    return SamplerSettings(
        temperature=temperature,
        top_k=top_k if 0 < top_k < vocab_size else 0,
        top_p=checked.share(options, "top_p", 1.0),
        min_p=checked.share(options, "min_p", 0.0),
        typical_p=checked.share(options, "typical_p", 1.0),
    )


def make_sampler(settings: SamplerSettings, seed: int | None, drawn: int = 0) -> Sampler:
    """A sampler for one request that has drawn `drawn` tokens already; only seeded ones are objects of their
    own."""
    if settings.temperature == 0:
        return _greedy
    if seed is None:
        return _shared_sampler(settings)
    keys = _key_stream(seed, drawn)
    return lambda logprobs: _sample(logprobs, settings, next(keys))


def make_processors(options: pb.Options, vocab_size: int) -> list[Processor]:
    """Logits processors for the penalties and the bias of a request; none where nothing asks for one."""
    processors: list[Processor] = []
    if options.logit_bias:
        checked.check_bias(options, vocab_size)
        processors.append(_bias(options))
    repeat = checked.repeat_penalty(options)
    presence = checked.finite(options, "presence_penalty", 0.0)
    frequency = checked.finite(options, "frequency_penalty", 0.0)
    last_n = checked.repeat_last_n(options)
    if last_n != 0 and (repeat != 1.0 or presence or frequency):
        processors.append(_penalties(last_n, repeat, presence, frequency))
    return processors


def _greedy(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)


@functools.lru_cache(maxsize=256)
def _shared_sampler(settings: SamplerSettings) -> Sampler:
    return lambda logprobs: _sample(logprobs, settings, None)


def _key_stream(seed: int, drawn: int) -> Iterator[mx.array]:
    """Random keys of one seeded request, one per token, independent of what else is in the batch."""
    for counter in itertools.count(drawn):
        yield mx.random.key(_splitmix64(seed + counter * 0x9E3779B97F4A7C15))


def _splitmix64(value: int) -> int:
    """Spread neighbouring values over 64 bits (the finaliser of Steele, Lea and Flood's SplitMix)."""
    value &= _UINT64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _UINT64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _UINT64
    return value ^ (value >> 31)


def _sample(logprobs: mx.array, s: SamplerSettings, key: mx.array | None) -> mx.array:
    candidates, ids = _top_candidates(logprobs, s.top_k, ordered=s.top_p < 1)
    scaled = candidates * (1 / s.temperature)
    if s.top_p < 1 or s.min_p > 0 or s.typical_p < 1:
        probs = mx.softmax(scaled, axis=-1)
        if s.typical_p < 1:
            scaled = mx.where(_typical(probs, s.typical_p), scaled, -math.inf)
        if s.top_p < 1:
            # Kept: tokens before which the likelier ones do not add up to top_p yet; always the first.
            before = mx.cumsum(probs, axis=-1) - probs
            scaled = mx.where(
                (before < s.top_p) | (probs == probs.max(axis=-1, keepdims=True)), scaled, -math.inf
            )
        if s.min_p > 0:
            scaled = mx.where(probs >= s.min_p * probs.max(axis=-1, keepdims=True), scaled, -math.inf)
    drawn = mx.random.categorical(scaled, axis=-1, key=key)
    if ids is None:
        return drawn
    return mx.take_along_axis(ids, drawn[:, None], axis=-1).squeeze(-1)


def _top_candidates(logprobs: mx.array, top_k: int, ordered: bool) -> tuple[mx.array, mx.array | None]:
    """The candidates' values, likeliest first if `ordered`, and their ids (None: their own positions)."""
    if not top_k and not ordered:
        return logprobs, None
    ids = mx.argpartition(-logprobs, kth=top_k - 1, axis=-1)[:, :top_k] if top_k else None
    values = mx.take_along_axis(logprobs, ids, axis=-1) if top_k else logprobs
    if ordered:
        order = mx.argsort(-values, axis=-1)
        values = mx.take_along_axis(values, order, axis=-1)
        ids = mx.take_along_axis(ids, order, axis=-1) if top_k else order
    return values, ids


def _typical(probs: mx.array, typical_p: float) -> mx.array:
    """Mask of the locally typical set: tokens whose surprise is nearest to the entropy, adding up to
    `typical_p`."""
    surprise = -mx.log(mx.maximum(probs, 1e-30))
    entropy = (probs * surprise).sum(axis=-1, keepdims=True)
    distance = mx.abs(surprise - entropy)
    order = mx.argsort(distance, axis=-1)
    ranked = mx.take_along_axis(probs, order, axis=-1)
    kept = mx.cumsum(ranked, axis=-1) - ranked < typical_p
    return mx.take_along_axis(kept, mx.argsort(order, axis=-1), axis=-1)


def _bias(options: pb.Options) -> Processor:
    ids = mx.array(list(options.logit_bias.keys()))
    values = mx.array(list(options.logit_bias.values()))
    return lambda _, logits: logits.at[:, ids].add(values)


# For each byte of a mask, what its bits add to eight logits: nothing for a one, minus infinity for a zero.
_MASK_BITS = mx.array([[0.0 if byte >> bit & 1 else -math.inf for bit in range(8)] for byte in range(256)])


def make_constraint_processor(constraint: Constraint) -> Processor:
    """Allows only what the constraint allows. It never raises: that would break the batch for its neighbours.

    The last token has to be read on the host, so the step before must have been computed; that is its cost.
    """
    # The first call is for the token after the prompt.
    fresh = True

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal fresh
        try:
            if not fresh:
                constraint.accept(tokens[-1].item())
            fresh = False
            mask = constraint.mask()
        except Exception as err:
            constraint.error = internal(f"the answer could not be kept to its format: {err}")
            return logits
        if mask is None:
            return logits
        bits = _MASK_BITS[mx.array(list(mask), dtype=mx.uint8)]
        return logits + bits.reshape(1, -1)[:, : logits.shape[-1]]

    return process


def _penalties(last_n: int, repeat: float, presence: float, frequency: float) -> Processor:
    """One pass for the three penalties over the last tokens; shapes: tokens (n,), logits (1, vocabulary)."""

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        window = tokens if last_n < 0 else tokens[-last_n:]
        counts = mx.zeros(logits.shape[-1:]).at[window].add(1.0)[None]
        seen = counts > 0
        penalised = mx.where(logits > 0, logits / repeat, logits * repeat)
        penalised = penalised - presence - frequency * counts
        return mx.where(seen, penalised, logits)

    return process
