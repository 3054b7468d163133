"""Measure everything there is a goal for, or some of it.

python -m scripts.bench                                 # all, about a quarter of an hour
python -m scripts.bench overhead fairness --rounds 5
python -m scripts.bench peers --peers /path/to/venv     # a virtual environment with mlx-lm and vllm-mlx
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [p for p in (str(ROOT), str(ROOT / "python_runner")) if p not in sys.path]

from ollmlx import blas  # noqa: E402

QUESTIONS = (
    "library",
    "memory",
    "overhead",
    "peers",
    "conversation",
    "fairness",
    "constrained",
    "vision",
    "blas",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"of {', '.join(QUESTIONS)} (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side, in turn (default: 5)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each answer (default: 200)")
    parser.add_argument("--streams", default="", help="numbers of streams at once, for example 1,8")
    parser.add_argument("--model", choices=("demo", "llama"), help="only this one of the two models")
    parser.add_argument(
        "--peers",
        type=Path,
        help="virtual environment with mlx-lm and vllm-mlx; without it no peers are measured",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench_results", help="directory for the results")
    parser.add_argument(
        "--document", type=Path, help="also write the table as a document, docs/PERFORMANCE_RESULTS.md"
    )
    arguments = parser.parse_args()
    wrong = set(arguments.questions) - set(QUESTIONS)
    if wrong:
        parser.error(f"unknown: {', '.join(sorted(wrong))}; there are {', '.join(QUESTIONS)}")
    # One BLAS for all sides: what is started from here inherits it.
    blas.restart_with()

    from . import figures, report, results

    machine = figures.machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n", flush=True)
    started, measured = time.monotonic(), []
    with tempfile.TemporaryDirectory() as tmp:
        for figure in _measure(arguments, Path(tmp)):
            measured.append(figure)
            print(report.line(figure), flush=True)
    files = report.write(arguments.out, machine, measured)
    if arguments.document:
        # The virtual environment's place says nothing to others.
        given = [arg if arg != str(arguments.peers) else "/path/to/venv" for arg in sys.argv[1:]]
        results.write(arguments.document, f"python -m scripts.bench {' '.join(given)}", machine, measured)
        files.append(arguments.document)
    print(
        f"\n{report.table(measured)}\n\n{time.monotonic() - started:.0f} s; written: {', '.join(map(str, files))}"
    )


def _measure(arguments: argparse.Namespace, tmp: Path) -> Iterator:
    from . import (
        blas_gain,
        constrained,
        conversation,
        fairness,
        ggufs,
        library,
        models,
        overhead,
        peers,
        vision,
    )

    questions = arguments.questions or QUESTIONS
    rounds, tokens = arguments.rounds, arguments.tokens
    streams = [int(s) for s in arguments.streams.split(",") if s]
    made = models.make(tmp)
    larger = {name: path for name, path in made.items() if name.startswith("llama")}
    if arguments.model:
        made = {name: path for name, path in made.items() if name.startswith(arguments.model)}
    if {"library", "memory"} & set(questions):
        path = ggufs.make(tmp / "large.gguf")
        for threads in sorted({1, max((os.cpu_count() or 2) // 2, 1)}):
            name = f"llama, 0.35B Q4_0, {threads} thread{'s' * (threads > 1)}"
            if "library" in questions:
                yield from library.measure(name, path, streams or [1, 8], tokens // 2, rounds, threads)
        if "memory" in questions:
            yield from library.measure_memory("llama, 0.35B Q4_0", path, tokens // 2, rounds, threads)
            path = ggufs.make(tmp / "plain.gguf", "F16")
            yield from library.measure_memory("llama, 0.35B F16", path, tokens // 2, rounds, threads)
    if "vision" in questions:
        yield from vision.measure(tmp, (streams or [8])[-1], tokens // 2, rounds)
    for name, path in made.items():
        if "overhead" in questions:
            yield from overhead.measure(name, path, streams or [1, 8], tokens, rounds)
    for name, path in (made if arguments.model else larger).items():
        if "peers" in questions and arguments.peers:
            yield from peers.measure(
                name,
                path,
                arguments.peers,
                arguments.out,
                streams or [1, 4, 8, 16],
                tokens // 2,
                max(rounds - 2, 1),
            )
        if "conversation" in questions:
            yield from conversation.measure(name, path, rounds)
        if "fairness" in questions:
            yield from fairness.measure(name, path, rounds)
        if "constrained" in questions:
            yield from constrained.measure(name, path, tokens, rounds)
        if "blas" in questions:
            yield from blas_gain.measure(name, path, max(rounds // 2, 1))


if __name__ == "__main__":
    main()
