"""The same model as MLX and as GGUF through the server's own API on this machine, and a server of your choice beside.

scripts/benchmark_mlx_vs_gguf.sh                                   # a llama with random weights in both formats
scripts/benchmark_mlx_vs_gguf.sh --mlx qwen3-mlx --gguf qwen3      # two models of your store
scripts/benchmark_mlx_vs_gguf.sh --gguf qwen3 --url http://127.0.0.1:11434 --url-model qwen3:0.6b     # Ollama beside it
scripts/benchmark_mlx_vs_gguf.sh --url http://127.0.0.1:1234 --url-model qwen3                        # LM Studio

Each side answers one request to warm up; then all sides take turns, so that what else the machine does is shared.
Prompts are new each time, so that no cache has them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.server import Server
from tests.support.tiny_models import make_model

from . import client, figures, ggufs, models
from .servers import completion

# What is measured: its name, its unit, and whether more is better.
FIGURES = {
    "prompt": ("prompt tokens/s", True),
    "generation": ("generated tokens/s", True),
    "first": ("ms to the first token", False),
}
_SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 9, "head_dim": 96}
_SAME_SIZES = {"width": 384, "feed_forward": 1024, "layers": 9, "heads": 4, "kv_heads": 2, "head": 96}


@dataclass
class Side:
    """One column."""

    name: str
    post: Callable[[str, int], client.Post]
    # The process whose memory is watched, once the model is loaded.
    process: psutil.Process | None = None
    peak: int = 0
    # (figure, streams): one value for each counted run.
    values: dict[tuple[str, int], list[float]] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark_mlx_vs_gguf.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mlx", metavar="NAME", help="a model in MLX format of your store")
    parser.add_argument("--gguf", metavar="NAME", help="a GGUF model of your store")
    parser.add_argument("--url", help="base URL of another server that speaks Ollama's or OpenAI's API")
    parser.add_argument("--url-model", metavar="NAME", help="its model")
    parser.add_argument("--streams", default="1,4", help="numbers of requests at once (default: 1,4)")
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each side (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="runs before that do not count (default: 1)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=256, help="length of the prompts (default: about 256)"
    )
    parser.add_argument("--tokens", type=int, default=64, help="length of the answers (default: 64)")
    parser.add_argument(
        "--quantization", default="Q8_0", help="of the random GGUF model: F32, F16, Q8_0 or Q4_0"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench_results/formats"), help="directory for the results"
    )
    arguments = parser.parse_args()
    if bool(arguments.url) != bool(arguments.url_model):
        parser.error("--url and --url-model go together")
    machine = figures.machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n", flush=True)
    streams = [int(s) for s in arguments.streams.split(",")]
    with ExitStack() as stack:
        sides = list(_sides(arguments, stack))
        for count in streams:
            measure(sides, count, arguments)
    files = write(arguments.out, machine, sides, streams)
    print(f"\n{table(sides, streams)}\n\nwritten: {', '.join(map(str, files))}")


def measure(sides: list[Side], streams: int, arguments: argparse.Namespace) -> None:
    """All sides in turn, each round beginning with another."""
    for round_ in range(-arguments.warmup, arguments.rounds):
        first = round_ % len(sides)
        for side in sides[first:] + sides[:first]:
            prompts = [_prompt(arguments.prompt_tokens) for _ in range(streams)]
            with _watch(side):
                answers = client.run([side.post(p, arguments.tokens) for p in prompts], timeout=1800)
            if round_ < 0:
                continue
            speeds = figures_of(answers)
            for name, value in speeds.items():
                side.values.setdefault((name, streams), []).append(value)
            shown = ", ".join(f"{value:.1f} {FIGURES[name][0]}" for name, value in speeds.items())
            print(f"round {round_ + 1}, {streams} at once, {side.name}: {shown}", flush=True)


def figures_of(answers: list[client.Answer]) -> dict[str, float]:
    """As a client sees them, alike for all servers: prompts are done when the first token comes."""
    prompts = sum(a.prompt_tokens for a in answers)
    first, last = max(a.first for a in answers), max(a.last for a in answers)
    generated = sum(a.tokens for a in answers) - len(answers)
    # Where everything came at once there is no telling when it was computed.
    spent = last - min(a.first for a in answers)
    return {
        "prompt": prompts / first,
        "generation": generated / (spent if spent > 0.01 else last),
        "first": 1000 * statistics.median(a.first for a in answers),
    }


def _prompt(tokens: int) -> str:
    """A new text; a word is a token or two for most models, and one token a byte for the random ones."""
    [start] = models.prompts(1)
    return (start + " Once upon a time there was a machine that told stories." * (tokens // 8 + 1))[
        : max(tokens, 40)
    ]


def _sides(arguments: argparse.Namespace, stack: ExitStack) -> Iterator[Side]:
    names = {"MLX": arguments.mlx, "GGUF": arguments.gguf}
    environment = {
        "OLLAMA_NUM_PARALLEL": str(max(int(s) for s in arguments.streams.split(","))),
        "OLLAMA_MAX_LOADED_MODELS": "2",
    }
    if any(names.values()):
        environment["OLLAMA_MODELS"] = os.environ.get(
            "OLLAMA_MODELS", str(Path("~/.ollama/models").expanduser())
        )
        environment["OLLAMA_NOPRUNE"] = "1"
    server = stack.enter_context(Server(OLLAMA_CONTEXT_LENGTH="4096", **environment))
    if not any(names.values()) and not arguments.url:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server.create(
            "mlx", make_model(tmp / "mlx", "llama", endless=True, max_position_embeddings=8192, **_SIZES)
        )
        server.create("gguf", ggufs.make(tmp / "gguf" / "llama.gguf", arguments.quantization, **_SAME_SIZES))
        names = {"MLX": "mlx", "GGUF": "gguf"}
    for label, name in names.items():
        if name:
            yield _own(server, label, name)
    if arguments.url:
        yield _other(arguments.url.rstrip("/"), arguments.url_model)


def _own(server: Server, label: str, name: str) -> Side:
    post = _native(server.url, name)
    known = {p.pid for p in server.runner_processes()}
    client.run([post("Hello", 2)], timeout=1800)
    fresh = [p for p in server.runner_processes() if p.pid not in known]
    engine = label.lower()
    return Side(f"{label} ({name})", post, next((p for p in fresh if engine in p.cmdline()), None))


def _other(url: str, model: str) -> Side:
    """Ollama's API where the server has it, else OpenAI's."""
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=5) as response:
            native = "version" in json.loads(response.read())
    except (OSError, ValueError):
        native = False
    base = url.removesuffix("/v1")
    post = _native(url, model) if native else lambda prompt, tokens: completion(base, model, prompt, tokens)
    return Side(f"{url} ({model})", post)


def _native(url: str, model: str) -> Callable[[str, int], client.Post]:
    def post(prompt: str, tokens: int) -> client.Post:
        options = {"temperature": 0, "num_predict": tokens}
        return client.Post(
            f"{url}/api/generate", {"model": model, "prompt": prompt, "raw": True, "options": options}
        )

    return post


@contextmanager
def _watch(side: Side) -> Iterator[None]:
    """Keep the most memory that the side's process has while it works."""
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.1):
            with suppress(psutil.Error):
                side.peak = max(side.peak, side.process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    if side.process is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()


def table(sides: list[Side], streams: list[int]) -> str:
    """Medians with the range of the runs, in Markdown."""
    rows = ["| | " + " | ".join(s.name for s in sides) + " |", "| --- " * (len(sides) + 1) + "|"]
    for count in streams:
        for name, (label, _) in FIGURES.items():
            cells = []
            for side in sides:
                v = side.values[name, count]
                cells.append(f"{statistics.median(v):.1f} ({min(v):.1f}-{max(v):.1f})")
            rows.append(f"| {label}, {count} at once | " + " | ".join(cells) + " |")
    peaks = [f"{s.peak / 1e6:.0f} MB" if s.peak else "not known" for s in sides]
    return "\n".join([*rows, "| peak memory of the runner | " + " | ".join(peaks) + " |"])


def write(directory: Path, machine: dict[str, str], sides: list[Side], streams: list[int]) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "runs.csv", directory / "table.md"]
    with files[0].open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["side", "figure", "streams", "run", "value"])
        for side in sides:
            for (name, count), values in side.values.items():
                writer.writerows(
                    [side.name, FIGURES[name][0], count, i + 1, f"{v:.5g}"] for i, v in enumerate(values)
                )
            writer.writerow([side.name, "peak memory in bytes", "", "", side.peak or ""])
    described = "\n".join(f"- {key}: {value}" for key, value in machine.items())
    files[1].write_text(f"{table(sides, streams)}\n\n{described}\n")
    return files + _plot(directory, machine, sides, streams)


def _plot(directory: Path, machine: dict[str, str], sides: list[Side], streams: list[int]) -> list[Path]:
    """Medians as bars, every run as a dot; nothing without matplotlib (the extra `bench`)."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: it needs matplotlib (pip install matplotlib)")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(1, len(FIGURES), figsize=(13, 4.5))
    for axes, (name, (label, more)) in zip(all_axes, FIGURES.items(), strict=True):
        width = 0.8 / len(sides)
        for column, side in enumerate(sides):
            at = [row + column * width for row in range(len(streams))]
            runs = [side.values[name, count] for count in streams]
            axes.bar(at, [statistics.median(v) for v in runs], width * 0.9, label=side.name)
            for x, values in zip(at, runs, strict=True):
                axes.plot([x] * len(values), values, "k.", markersize=3)
        axes.set_xticks(
            [row + 0.4 - width / 2 for row in range(len(streams))], [f"{c} at once" for c in streams]
        )
        axes.set_title(f"{label} ({'more' if more else 'less'} is better)", fontsize=10)
    # Below all three, where no bar is.
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(sides), fontsize=8)
    figure.suptitle(f"{machine['machine']}, {machine['system']}", fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    paths = [directory / "plot.png", directory / "plot.svg"]
    for path in paths:
        figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return paths


if __name__ == "__main__":
    main()
