"""What a tuned BLAS gives MLX on a Linux CPU: the bare engine in two processes, with it and without."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ollmlx import blas

from . import models
from .figures import Figure, median_ratio


def measure(name: str, model: Path, rounds: int) -> Iterator[Figure]:
    if blas.find() is None:
        return
    stock, tuned = [], []
    for _ in range(rounds):
        stock.append(_child(model, {blas.VARIABLE: "0", "LD_PRELOAD": ""}))
        tuned.append(_child(model, {}))
    for key, label, goal in (("prefill", "prefill", 4), ("decode", "decode, batch of 8", 5)):
        ratio, spread = median_ratio([t[key] for t in tuned], [s[key] for s in stock])
        absolute = {
            "stock tok/s": statistics.median(s[key] for s in stock),
            "tuned tok/s": statistics.median(t[key] for t in tuned),
        }
        yield Figure(
            f"tuned BLAS / stock wheel, {label}", name, ratio, at_least=goal, detail=spread | absolute
        )


def _child(model: Path, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, str(model)]
    result = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(result.stdout)


def main(model: Path) -> None:
    """Print the speeds of this process."""
    import time

    from .bare import Bare

    bare = Bare(model)
    bare.run(models.prompts(1), 4)
    prompt = models.text(bare.tokenizer, 1024)
    started = time.perf_counter()
    bare.run([prompt], 1)
    prefill = 1024 / (time.perf_counter() - started)
    run = bare.run(models.prompts(8), 33)
    seconds = 8 * 33 / run.tokens_per_second - max(run.first)
    print(json.dumps({"prefill": prefill, "decode": 8 * 32 / seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
