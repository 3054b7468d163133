"""What happens to a prompt that does not fit into its context, alike for every engine."""

from __future__ import annotations

from ollmlx.runner.errors import invalid
from ollmlx.runner.v1 import runner_pb2 as pb


def fit_tokens(
    tokens: list[int], request: pb.GenerateRequest, num_ctx: int, *, whole: bool = False
) -> list[int]:
    """Cut the middle out of a prompt that leaves no room, as Ollama does: num_keep tokens of the head stay. A `whole`
    one is not cut: its images would be."""
    if len(tokens) < num_ctx:
        return tokens
    if whole or not request.truncate:
        raise too_long(len(tokens), num_ctx)
    keep = min(max(request.options.num_keep, 0), num_ctx - 1)
    tail = num_ctx - max((num_ctx - keep) // 2, 1) - keep
    return tokens[:keep] + (tokens[-tail:] if tail > 0 else [])


def too_long(tokens: int, num_ctx: int) -> Exception:
    return invalid(
        f"input length ({tokens} tokens) exceeds the model's maximum context length ({num_ctx} tokens)"
    )


def oldest_message(chat: pb.Chat) -> int | None:
    """The message that goes first from a chat that is too long; never a system one, nor the last."""
    return next((i for i, m in enumerate(chat.messages[:-1]) if m.role != "system"), None)
