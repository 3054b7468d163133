"""Values of a request's options, checked: what every engine refuses, and by which name."""

from __future__ import annotations

import math

from ollmlx.runner.errors import invalid
from ollmlx.runner.v1 import runner_pb2 as pb


def finite(options: pb.Options, name: str, default: float) -> float:
    """The value of an option, or `default` when it is absent; raises INVALID_ARGUMENT for what is no number."""
    if not options.HasField(name):
        return default
    value = getattr(options, name)
    if not math.isfinite(value):
        raise invalid(f"{name} must be a finite number, got {value}")
    return value


def share(options: pb.Options, name: str, default: float) -> float:
    """A probability, clamped to [0, 1]."""
    return min(max(finite(options, name, default), 0.0), 1.0)


def temperature(options: pb.Options) -> float:
    value = finite(options, "temperature", 0.0)
    if value < 0:
        raise invalid(f"temperature must not be negative, got {value:g}")
    return value


def repeat_penalty(options: pb.Options) -> float:
    value = finite(options, "repeat_penalty", 1.0)
    if value <= 0:
        raise invalid(f"repeat_penalty must be greater than 0, got {value:g}")
    return value


def repeat_last_n(options: pb.Options) -> int:
    value = options.repeat_last_n if options.HasField("repeat_last_n") else -1
    if value < -1:
        raise invalid(f"repeat_last_n must be -1 (the whole context), 0 (off) or a count, got {value}")
    return value


def check_bias(options: pb.Options, vocab_size: int) -> None:
    wrong = next((token for token in options.logit_bias if token >= vocab_size), None)
    if wrong is not None:
        raise invalid(f"logit_bias names token {wrong}, but the vocabulary has {vocab_size} tokens")
    if not all(math.isfinite(v) for v in options.logit_bias.values()):
        raise invalid("logit_bias values must be finite numbers")
