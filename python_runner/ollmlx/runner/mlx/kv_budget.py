"""What the KV caches of requests may take, and who has to wait, to give way or to be refused for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ollmlx.runner.errors import exhausted
from ollmlx.runner.mlx.request import Request

# Tokens that a row is expected to gain before another one could leave.
_AHEAD = 256
# Bytes that are there or nothing would work.
_MUCH = 32 << 20


class KVBudget:
    """Bytes by tokens: a request waits until it fits, one that could never fit is refused, and of rows that have
    outgrown the budget the youngest gives way until there is room again."""

    def __init__(self, bytes_per_token: int, limit: int) -> None:
        self._per_token = bytes_per_token
        # 0: none.
        self.limit = limit

    def claim(self, requests: Iterable[Request]) -> int:
        """Bytes that they hold or will soon."""
        return self._per_token * sum(_held(r) + _expected(r) for r in requests)

    def fits(self, request: Request, beside: list[Request]) -> bool:
        """Whether `request` may join the others; one alone always may."""
        return not beside or not self.limit or self.claim([*beside, request]) <= self.limit

    def is_overdrawn(self, requests: list[Request]) -> bool:
        held = self._per_token * sum(_held(r) for r in requests)
        return bool(self.limit) and len(requests) > 1 and held > self.limit

    def left_for_prefixes(self, requests: Iterable[Request]) -> int | None:
        """Bytes that prefixes may take besides; None: no bound."""
        return max(self.limit - self.claim(requests), 0) if self.limit else None

    def refuse_beyond(self, request: Request, free_bytes: Callable[[], int]) -> None:
        """Raises RESOURCE_EXHAUSTED when the prompt needs more than all memory that can be had, which is only looked up
        for a prompt that needs much."""
        tokens = len(request.prompt.tokens)
        needed = self._per_token * tokens
        if needed < _MUCH or needed <= (free := free_bytes()):
            return
        raise exhausted(
            f"the prompt has {tokens} tokens, whose KV cache takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB of "
            "memory are free; send a shorter prompt or set a smaller num_ctx"
        )


def _held(request: Request) -> int:
    return len(request.tokens or request.prompt.tokens)


def _expected(request: Request) -> int:
    return max(min(request.prompt.max_new_tokens - request.generated, _AHEAD), 0)
