"""mlx-lm's BatchGenerator in this process, driven by nothing but a loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx_lm
from mlx_lm.generate import BatchGenerator


@dataclass(frozen=True)
class Run:
    tokens_per_second: float
    # Seconds from the start to the first token of each stream.
    first: list[float]


class Bare:
    def __init__(self, model: Path) -> None:
        self._model, self.tokenizer = mlx_lm.load(str(model))

    def run(self, prompts: Sequence[str], tokens: int) -> Run:
        started = time.perf_counter()
        generator = BatchGenerator(self._model, max_tokens=tokens)
        generator.insert([self.tokenizer.encode(p) for p in prompts])
        produced, live, first = 0, len(prompts), {}
        while live:
            responses = generator.next()[1]
            if responses and len(first) < len(prompts):
                now = time.perf_counter() - started
                for response in responses:
                    first.setdefault(response.uid, now)
            produced += len(responses)
            live -= sum(r.finish_reason is not None for r in responses)
        return Run(produced / (time.perf_counter() - started), list(first.values()))
