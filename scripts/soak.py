"""Mixed load on a real server for a while: does every request get its answer, and does memory stay where it was?

    python -m scripts.soak --seconds 600

Clients stream, converse, ask for JSON, embed, hang up, send nonsense, and swap adapters, all at once and at random
but repeatably (--seed). It prints a table and ends with 0 if no request was lost or answered wrongly, nothing is left
running, and the processes were no larger in the last quarter than in the second, but for --slack megabytes. The first
is the warm-up: caches, and the pools of allocators, grow to what the largest batch needs. Of each quarter it takes the
largest of many looks, since sizes come and go with collections.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import psutil

from tests.support.server import Server
from tests.support.tiny_models import make_adapter, make_model

WORDS = "the quick brown fox jumps over a lazy dog and then it does so again while nobody looks".split()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
# Answered greedily again and again: whatever else is in the batch, the text is the same.
FIXED = {"prompt": "Say it again: ", "raw": True, "options": {"temperature": 0, "num_predict": 24}}
MODELS = ("base", "one", "two")
# Different prompts, few enough that the prefix cache fills up during the warm-up.
PROMPTS = 150


class Wrong(Exception):
    """An answer is not what it has to be."""


class Soak:
    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.lock = threading.Lock()
        self.times: dict[str, list[float]] = collections.defaultdict(list)
        self.failures: list[str] = []
        self.expected: dict[str, str] = {}
        self.ends = 0.0
        self.kinds: list[tuple[Callable[[httpx.Client, random.Random], None], int]] = [
            (self.stream, 6), (self.converse, 4), (self.json, 3), (self.embed, 3), (self.hang_up, 4),
            (self.nonsense, 3), (self.fixed, 3), (self.openai, 3), (self.anthropic, 2),
        ]  # fmt: skip

    # ---- kinds of requests; each raises what is wrong

    def stream(self, http: httpx.Client, rng: random.Random) -> None:
        options = {
            "num_predict": rng.randrange(1, 60),
            "temperature": rng.choice([0, 0.8, 1.5]),
            "top_k": rng.choice([0, 40, 100000]),
            "repeat_penalty": rng.choice([1.0, 1.1]),
        }
        body = {"model": rng.choice(MODELS), "prompt": sentence(rng), "raw": True, "options": options}
        *_, last = lines(http, "/api/generate", body)
        if not last.get("done") or last["eval_count"] > options["num_predict"]:
            raise Wrong(f"a stream ended with {last}")

    def converse(self, http: httpx.Client, rng: random.Random) -> None:
        messages = [{"role": "system", "content": "Be brief."}]
        for _ in range(3):
            messages.append({"role": "user", "content": sentence(rng)})
            answer = ok(
                http.post(
                    "/api/chat",
                    json={
                        "model": "base",
                        "messages": messages,
                        "stream": False,
                        "options": {"num_predict": 16},
                    },
                )
            )
            messages.append(answer["message"])

    def json(self, http: httpx.Client, rng: random.Random) -> None:
        body = {"model": "base", "prompt": sentence(rng), "format": SCHEMA, "stream": False}
        answer = ok(http.post("/api/generate", json=body | {"options": {"seed": rng.randrange(1000)}}))
        if set(json.loads(answer["response"])) != {"name", "age"}:
            raise Wrong(f"not the schema: {answer['response']}")

    def embed(self, http: httpx.Client, rng: random.Random) -> None:
        texts = [sentence(rng) for _ in range(rng.randrange(1, 6))]
        answer = ok(http.post("/api/embed", json={"model": "base", "input": texts}))
        if len(answer["embeddings"]) != len(texts):
            raise Wrong("not one vector for each text")

    def hang_up(self, http: httpx.Client, rng: random.Random) -> None:
        body = {
            "model": rng.choice(MODELS),
            "prompt": sentence(rng) * rng.choice([1, 6]),
            "options": {"num_predict": 500},
        }
        with http.stream("POST", "/api/generate", json=body) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count == rng.randrange(0, 5):
                    break

    def nonsense(self, http: httpx.Client, rng: random.Random) -> None:
        body, statuses = rng.choice(
            [
                ({"model": "base", "prompt": "x", "options": {"temperature": "hot"}}, (400, 500)),
                ({"model": "base", "prompt": "x", "format": {"type": "strin"}}, (400,)),
                ({"model": "nobody", "prompt": "x"}, (404,)),
                (
                    {"model": "base", "prompt": "x", "options": {"num_predict": 2, "temperature": 1e9}},
                    (200, 400),
                ),
                ({"model": "base", "prompt": "x" * 3000, "truncate": False}, (200, 400)),
                ("{", (400,)),
            ]
        )
        content = body if isinstance(body, str) else json.dumps(body | {"stream": False})
        response = http.post("/api/generate", content=content)
        if response.status_code not in statuses:
            raise Wrong(f"{content[:100]} got {response.status_code}: {response.text[:200]}")

    def fixed(self, http: httpx.Client, rng: random.Random) -> None:
        model = rng.choice(MODELS)
        answer = ok(http.post("/api/generate", json={"model": model, "stream": False, **FIXED}))
        if answer["response"] != self.expected[model]:
            raise Wrong(f"{model} said {answer['response']!r}, not {self.expected[model]!r}")

    def openai(self, http: httpx.Client, rng: random.Random) -> None:
        body = {
            "model": "base",
            "messages": [{"role": "user", "content": sentence(rng)}],
            "max_tokens": 12,
            "stream": True,
        }
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            received = [line for line in response.iter_lines() if line]
        if response.status_code != 200 or received[-1] != "data: [DONE]":
            raise Wrong(f"OpenAI's stream ended with {received[-1:]}")

    def anthropic(self, http: httpx.Client, rng: random.Random) -> None:
        body = {
            "model": "base",
            "messages": [{"role": "user", "content": sentence(rng)}],
            "max_tokens": 12,
            "stream": True,
        }
        with http.stream("POST", "/v1/messages", json=body) as response:
            received = [line for line in response.iter_lines() if line]
        if response.status_code != 200 or '"message_stop"' not in received[-1]:
            raise Wrong(f"Anthropic's stream ended with {received[-1:]}")

    # ---- running them

    def warm(self) -> None:
        for model in MODELS:
            answer = self.server.post("/api/generate", model=model, **FIXED)
            self.expected[model] = answer["response"]

    def client(self, number: int) -> None:
        rng = random.Random(self.seed * 1000 + number)
        calls, weights = zip(*self.kinds, strict=True)
        with httpx.Client(base_url=self.server.url, timeout=300, trust_env=False) as http:
            while time.monotonic() < self.ends:
                [call] = rng.choices(calls, weights)
                began = time.monotonic()
                try:
                    call(http, rng)
                except Exception as err:
                    with self.lock:
                        self.failures.append(f"{call.__name__}: {type(err).__name__}: {err}")
                with self.lock:
                    self.times[call.__name__].append(time.monotonic() - began)

    def run(self, seconds: float, clients: int) -> list[dict[str, float]]:
        """The largest sizes in each quarter of the time."""
        self.ends = time.monotonic() + seconds
        threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        quarters = [self.watch(self.ends - seconds * left / 4) for left in (3, 2, 1, 0)]
        for thread in threads:
            thread.join()
        self.settle()
        return quarters

    def watch(self, until: float) -> dict[str, float]:
        """The largest sizes from now on."""
        sizes: dict[str, float] = {}
        while True:
            # Between a runner's death, which is counted elsewhere, and the next one's start there is none to look at.
            with contextlib.suppress(LookupError, ValueError, psutil.Error, grpc.RpcError):
                for name, size in self.memory().items():
                    sizes[name] = max(size, sizes.get(name, 0.0))
            if time.monotonic() >= until:
                return sizes
            time.sleep(min(0.5, max(until - time.monotonic(), 0)))

    def settle(self) -> None:
        """Requests that were hung up on are gone within a step."""
        deadline = time.monotonic() + 30
        while (status := self.server.runner_status()).running or status.queued:
            if time.monotonic() > deadline:
                self.failures.append(f"{status.running} requests still run and {status.queued} wait")
                return
            time.sleep(0.1)

    def memory(self) -> dict[str, float]:
        """In megabytes."""
        status = self.server.runner_status()
        host, [runner] = psutil.Process(self.server.process.pid), self.server.runner_processes()
        held = status.memory.active_bytes - status.prefix_cache.bytes
        sizes = {
            "host, resident": host.memory_info().rss,
            "runner, resident": runner.memory_info().rss,
            "MLX's pool": status.memory.pool_bytes,
            "arrays but for prefixes": held,
            "prefixes": status.prefix_cache.bytes,
        }
        return {name: size / 1e6 for name, size in sizes.items()}


def sentence(rng: random.Random) -> str:
    own = random.Random(rng.randrange(PROMPTS))
    return " ".join(own.choice(WORDS) for _ in range(own.randrange(3, 40)))


def lines(http: httpx.Client, path: str, body: dict[str, object]) -> list[dict[str, object]]:
    with http.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            raise Wrong(f"{response.status_code}: {response.read()!r}")
        return [json.loads(line) for line in response.iter_lines()]


def ok(response: httpx.Response) -> dict[str, object]:
    if response.status_code != 200:
        raise Wrong(f"{response.status_code}: {response.text[:200]}")
    return response.json()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--slack", type=float, default=32, help="megabytes that memory may grow (default: 32)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Server(OLLMLX_PREFIX_CACHE="200MB") as server:
        model = make_model(Path(directory) / "m", "llama")
        server.create("base", model)
        for seed, name in enumerate(MODELS[1:]):
            server.create(name, model, f"ADAPTER {make_adapter(Path(directory) / name, model, seed=seed)}")
        soak = Soak(server, arguments.seed)
        soak.warm()
        quarters = soak.run(arguments.seconds, arguments.clients)
        restarts = server.log.count("unexpectedly stopped")
    return report(soak, quarters, arguments.slack, restarts)


def report(soak: Soak, quarters: list[dict[str, float]], slack: float, restarts: int) -> int:
    print(f"{'requests':<28}{'number':>9}{'median':>12}{'p99':>12}{'longest':>12}")
    for kind, times in sorted(soak.times.items()):
        ordered = sorted(times)
        p99 = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
        middle = statistics.median(ordered)
        print(
            f"{kind:<28}{len(ordered):>9}{middle * 1e3:>9.0f} ms{p99 * 1e3:>9.0f} ms{ordered[-1] * 1e3:>9.0f} ms"
        )
    print(f"{'all':<28}{sum(map(len, soak.times.values())):>9}\n")
    print(f"{'most memory, MB':<28}" + "".join(f"{f'quarter {i}':>12}" for i in range(1, 5)))
    grown = []
    for name in dict.fromkeys(name for quarter in quarters for name in quarter):
        sizes = [quarter.get(name, 0.0) for quarter in quarters]
        print(f"{name:<28}" + "".join(f"{size:>12.1f}" for size in sizes))
        if name not in ("prefixes", "MLX's pool") and sizes[3] > sizes[1] + slack:
            grown.append(name)
    print(
        f"\nlost or wrong: {len(soak.failures)}, runners that died: {restarts}, grown: {', '.join(grown) or 'nothing'}"
    )
    for failure in soak.failures[:20]:
        print(" ", failure[:300])
    return 1 if soak.failures or grown or restarts else 0


if __name__ == "__main__":
    sys.exit(main())
