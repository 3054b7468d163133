"""The row of a batch that a request becomes."""

from __future__ import annotations

from ollmlx.runner.mlx import penalties, sampling
from ollmlx.runner.mlx.mlxlm import NewRow
from ollmlx.runner.mlx.prefix_cache import Prefix
from ollmlx.runner.mlx.request import Request


def make_row(request: Request, prefix: Prefix | None, position_shift: int, vocab_size: int) -> NewRow:
    """Continues the request's tokens, whether they are its prompt or more; its grammar and its draws go on too."""
    options, prompt = request.proto.options, request.prompt
    settings = sampling.settings_from_options(options, vocab_size)
    seed = options.seed if options.HasField("seed") and options.seed >= 0 else None
    if prompt.constraint is not None:
        prompt.constraint.restart(request.output)
    return NewRow(
        tokens=request.tokens,
        max_tokens=min(prompt.max_new_tokens - request.generated, prompt.num_ctx - len(request.tokens)),
        sampler=sampling.make_sampler(settings, seed, request.generated),
        adjustment=penalties.adjustment_from_options(options, vocab_size),
        constraint=prompt.constraint,
        logprobs=request.proto.logprobs,
        prefix=prefix,
        boundaries=prompt.boundaries,
        position_shift=position_shift,
    )
