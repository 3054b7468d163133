"""What the host itself costs, and how soon a model answers that is not loaded.

Four parts, each with its goal, printed as one table:

- the idle host: resident memory, and time from exec to the first answer;
- 1,000 streams at once through the host from a synthetic runner (a Go benchmark, run if Go is there);
- the cold start of the demo model, nothing loaded, with a warm runner that waits and without; against
  `mlx_lm.generate` as a command, in turn;
- fifty switches between two models of which one fits: memory, processes, failures.

    python scripts/bench_host.py
    python scripts/bench_host.py --rounds 5 --parts idle,cold
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "python_runner")]

from tests.support.server import Server  # noqa: E402
from tests.support.tiny_models import make_model  # noqa: E402

DEMO = ROOT / "python_runner" / "ollmlx" / "models" / "demo"
QUESTION = "What is ollmlx?"
SWITCHES = 50


def row(what: str, value: str, goal: str) -> None:
    print(f"{what:<64}{value:>26}   {goal}", flush=True)


def idle(rounds: int) -> None:
    ready, resident = [], []
    for _ in range(rounds):
        with Server() as server:
            server.stop()
            began = time.perf_counter()
            server.start(poll=0.001)
            ready.append(time.perf_counter() - began)
            time.sleep(0.5)
            resident.append(psutil.Process(server.process.pid).memory_info().rss)
    row("host idle, resident", f"{statistics.median(resident) / 1e6:.1f} MB", "<= 30 MB")
    row("from exec to the first answer", f"{statistics.median(ready) * 1000:.0f} ms", "<= 150 ms")


def streams() -> None:
    go = os.environ.get("OLLMLX_GO") or shutil.which("go")
    if go is None:
        row("1,000 streams", "no Go here", "p99 <= 5 ms")
        return
    command = [go, "test", "-run", "^$", "-bench", "Streams", "-benchtime", "1x", "./internal/server"]
    done = subprocess.run(command, cwd=ROOT / "go", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith("BenchmarkStreams/"):
            words = line.split()
            figures = dict(zip(words[3::2], words[2::2], strict=True))
            count = words[0].split("=")[1].split("-")[0]
            text = f"p50 {figures['p50-ms']}, p99 {figures['p99-ms']} ms"
            row(f"{count} streams, what the host adds to an event, none lost", text, "p99 <= 5 ms")
            row(f"{count} streams, host's private memory", f"{figures['KiB/stream']} KiB a stream", "")


def first_token(server: Server, model: str = "demo") -> float:
    began = time.perf_counter()
    body = {"model": model, "prompt": QUESTION, "options": {"num_predict": 8, "temperature": 0}}
    with server.stream("/api/generate", **body) as lines:
        for line in lines:
            if "error" in line:
                raise SystemExit(line["error"])
            if line["response"] or line.get("thinking"):
                return time.perf_counter() - began
    raise SystemExit("no token came")


def unload(server: Server) -> None:
    server.post("/api/generate", model="demo", keep_alive=0)
    while server.http.get("/api/ps").json()["models"]:
        time.sleep(0.01)


def wait_for_spare(server: Server, count: int) -> None:
    deadline = time.monotonic() + 120
    while server.log.count("a spare runner is ready") < count:
        if time.monotonic() > deadline:
            raise SystemExit(server.log)
        time.sleep(0.05)


def command_line() -> float:
    """From the start of the command to the end of its answer, which is a little more than to its first token."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(DEMO), "--prompt", QUESTION]
    subprocess.run([*command, "--max-tokens", "1"], check=True, capture_output=True)
    return time.perf_counter() - began


def cold(rounds: int) -> None:
    warm, without, command = [], [], []
    with (
        Server(OLLMLX_WARM_RUNNER="1", OLLAMA_DEBUG="1") as spare,
        Server() as plain,
    ):
        for i in range(rounds):
            wait_for_spare(spare, i + 1)
            warm.append(first_token(spare))
            unload(spare)
            without.append(first_token(plain))
            unload(plain)
            command.append(command_line())
    ratios = [c / w for c, w in zip(command, warm, strict=True)]
    row("cold start to the first token, a warm runner waits", f"{statistics.median(warm):.2f} s", "<= 0.5 s")
    row("cold start to the first token, none waits", f"{statistics.median(without):.2f} s", "")
    row("mlx_lm.generate as a command, one token", f"{statistics.median(command):.2f} s", "")
    row("mlx_lm.generate against the cold start", f"{statistics.median(ratios):.1f} x", ">= 8 x")


def switches() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        Server(OLLAMA_MAX_LOADED_MODELS="1", OLLMLX_WARM_RUNNER="1") as server,
    ):
        server.create("other", make_model(Path(directory) / "m", "llama"))
        host = psutil.Process(server.process.pid)
        resident, failed, began = [], 0, time.perf_counter()
        for i in range(SWITCHES):
            body = {
                "model": ("demo", "other")[i % 2],
                "prompt": "Hi",
                "stream": False,
                "options": {"num_predict": 2},
            }
            failed += server.http.post("/api/generate", json=body).status_code != 200
            resident.append(host.memory_info().rss)
        seconds = (time.perf_counter() - began) / SWITCHES
        files = host.num_fds()
        # The model, and a spare runner if one was started meanwhile.
        processes = len(server.runner_processes())
        growth = statistics.mean(resident[-5:]) - statistics.mean(resident[5:10])
    row(f"{SWITCHES} switches between two models, failed requests", str(failed), "0")
    row("  time of one", f"{seconds:.2f} s", "")
    row("  growth of the host from the 5th to the last", f"{growth / 1e6:+.1f} MB", "none")
    row("  processes at the end (model and spare), open files", f"{processes}, {files}", "<= 2 processes")
    if failed or processes > 2:
        raise SystemExit(json.dumps({"failed": failed, "processes": processes}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of idle and cold (default: 5)")
    parser.add_argument("--parts", default="idle,streams,cold,switches", help="which parts (default: all)")
    arguments = parser.parse_args()
    parts = {
        "idle": lambda: idle(arguments.rounds),
        "streams": streams,
        "cold": lambda: cold(arguments.rounds),
        "switches": switches,
    }
    wanted = arguments.parts.split(",")
    unknown = [part for part in wanted if part not in parts]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(parts)}")
    for part in wanted:
        parts[part]()


if __name__ == "__main__":
    main()
