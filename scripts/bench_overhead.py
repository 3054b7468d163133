"""What HTTP, the Go host, gRPC and the runner cost over the bare engine.

In one run on one machine, the same greedy requests go through mlx-lm's BatchGenerator in this process and
through `ollmlx serve` over HTTP, in turn, several rounds each; what counts is the ratio of the medians. Only
one of the two works at a time. Tokens per second are all tokens of all streams over the time from the first
request to the end of the last, prefill included; the server's count of tokens is checked against what was
asked for.

    python scripts/bench_overhead.py                       # the demo model and one ten times its size
    python scripts/bench_overhead.py --streams 1,8,16 --tokens 256 --rounds 7
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "python_runner")]

from ollmlx import blas  # noqa: E402
from tests.support.server import Server  # noqa: E402
from tests.support.tiny_models import make_model  # noqa: E402

DEMO = ROOT / "python_runner" / "ollmlx" / "models" / "demo"
# A llama of about 16 million parameters.
LARGER = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 9, "head_dim": 96}


_round = itertools.count()


def prompts(streams: int) -> list[str]:
    """New ones each time: the server would have the prefixes of old ones in its cache."""
    number = next(_round)
    return [f"{number}.{i}: tell me a long story about the number {i}." for i in range(streams)]


class Bare:
    """mlx-lm's BatchGenerator driven by nothing but a loop."""

    def __init__(self, model: Path) -> None:
        import mlx_lm
        from mlx_lm.generate import BatchGenerator

        self._model, self._tokenizer = mlx_lm.load(str(model))
        self._generator_class = BatchGenerator

    def run(self, streams: int, tokens: int) -> tuple[float, float]:
        """Tokens per second, and seconds to the first token of the first stream."""
        started = time.perf_counter()
        generator = self._generator_class(self._model, max_tokens=tokens)
        generator.insert([self._tokenizer.encode(p) for p in prompts(streams)])
        produced, first, live = 0, 0.0, streams
        while live:
            responses = generator.next()[1]
            if responses and not produced:
                first = time.perf_counter() - started
            produced += len(responses)
            live -= sum(r.finish_reason is not None for r in responses)
        return produced / (time.perf_counter() - started), first


class OverHTTP:
    """The same requests as raw streaming generates of the native API."""

    def __init__(self, server: Server, name: str) -> None:
        self._address = urlsplit(server.url).netloc
        self._name = name

    def run(self, streams: int, tokens: int) -> tuple[float, float]:
        started = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            results = list(pool.map(lambda p: self._generate(p, tokens, started), prompts(streams)))
        seconds = time.perf_counter() - started
        produced = [r[0] for r in results]
        if produced != [tokens] * streams:
            raise SystemExit(f"the server generated {produced} tokens instead of {tokens} for each stream")
        return sum(produced) / seconds, min(r[1] for r in results)

    def _generate(self, prompt: str, tokens: int, started: float) -> tuple[int, float]:
        body = {
            "model": self._name, "prompt": prompt, "raw": True,
            "options": {"temperature": 0, "num_predict": tokens},
        }  # fmt: skip
        connection = http.client.HTTPConnection(self._address)
        connection.request("POST", "/api/generate", json.dumps(body))
        response = connection.getresponse()
        first, last = 0.0, b""
        for line in response:
            first = first or time.perf_counter() - started
            last = line
        connection.close()
        end = json.loads(last)
        if "error" in end:
            raise RuntimeError(end["error"])
        return end["eval_count"], first


def endless_copy(model: Path, target: Path) -> Path:
    """The model without end-of-sequence tokens, so that every stream has the asked-for length."""
    target.mkdir()
    for file in model.iterdir():
        data = file.read_bytes()
        if file.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            entries = json.loads(data)
            for key in ("eos_token_id", "eos_token"):
                entries.pop(key, None)
            data = json.dumps(entries).encode()
        (target / file.name).write_bytes(data)
    return target


def measure(name: str, model: Path, streams: list[int], tokens: int, rounds: int) -> None:
    bare = Bare(model)
    with Server(OLLAMA_CONTEXT_LENGTH="2048") as server:
        server.create("bench", model)
        http_side = OverHTTP(server, "bench")
        for side in (bare, http_side):
            side.run(1, 8)
        for count in streams:
            pairs = [(bare.run(count, tokens), http_side.run(count, tokens)) for _ in range(rounds)]
            report(name, count, pairs)


def report(name: str, streams: int, pairs: list[tuple[tuple[float, float], tuple[float, float]]]) -> None:
    bare = statistics.median(p[0][0] for p in pairs)
    over = statistics.median(p[1][0] for p in pairs)
    ratios = sorted(p[1][0] / p[0][0] for p in pairs)
    first = 1000 * (statistics.median(p[1][1] for p in pairs) - statistics.median(p[0][1] for p in pairs))
    print(
        f"{name:<10}{streams:>8}{bare:>14.1f}{over:>14.1f}{statistics.median(ratios):>9.3f}"
        f"   {ratios[0]:.3f}-{ratios[-1]:.3f}{first:>14.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="directory of an MLX model to measure instead of the two")
    parser.add_argument("--streams", default="1,8", help="numbers of streams at once (default: 1,8)")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each stream (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side (default: 5)")
    arguments = parser.parse_args()
    # The same BLAS for both sides.
    blas.restart_with()
    streams = [int(s) for s in arguments.streams.split(",")]

    print(f"{platform.machine()}, {platform.platform()}, Python {platform.python_version()}")
    print(f"BLAS: {blas.find() or 'of the mlx wheel'}")
    print(f"greedy, {arguments.tokens} tokens a stream, median of {arguments.rounds} rounds in turn\n")
    print(
        f"{'model':<10}{'streams':>8}{'bare tok/s':>14}{'HTTP tok/s':>14}{'ratio':>9}   {'range':<11}{'TTFT +ms':>14}"
    )
    with tempfile.TemporaryDirectory() as tmp:
        if arguments.model:
            models = {arguments.model.name[:9]: endless_copy(arguments.model, Path(tmp) / "given")}
        else:
            models = {
                "demo": endless_copy(DEMO, Path(tmp) / "demo"),
                "llama-16m": make_model(Path(tmp) / "larger", "llama", endless=True, **LARGER),
            }
        for name, model in models.items():
            measure(name, model, streams, arguments.tokens, arguments.rounds)


if __name__ == "__main__":
    main()
