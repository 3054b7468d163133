"""The table of faults: each row is injected by a test of this directory, and docs/reliability.md shows it.

python -m tests.reliability.faults     writes the table into the document
"""

# ruff: noqa: E501 -- cells of a table do not break
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
_BEGIN = "<!-- faults: made by python -m tests.reliability.faults -->\n"
_END = "<!-- end of faults -->\n"


@dataclass(frozen=True)
class Fault:
    """One row. `seconds` is the bound that the test holds, on a busy machine, until the next request is served."""

    what: str
    client: str
    seconds: float
    lost: str


_DIED = "500, or an `error` line in a stream: *model runner has unexpectedly stopped ... (killed by SIGKILL)*"
_NEXT = "the requests in that runner"

FAULTS = {
    "runner killed while loading": Fault(
        "`kill -9` of a runner that loads", _DIED, 10, "the requests that waited for the load"
    ),
    "runner killed while prefilling": Fault("`kill -9` of a runner that computes a prompt", _DIED, 10, _NEXT),
    "runner killed while decoding": Fault(
        "`kill -9` of a runner that answers", _DIED + ", after what was generated", 10, _NEXT
    ),
    "runner killed while idle": Fault(
        "`kill -9` of an idle runner",
        "nothing: the next request loads the model again; one in the milliseconds until the host knows gets 500",
        10,
        "nothing",
    ),
    "runner crashes at every start": Fault(
        "a runner that crashes at every start",
        "500 with the exit code and the end of its log; from the third attempt on 503 with `Retry-After`, and `failing` in `/api/ps`",
        60,
        "the requests for that model; others are served",
    ),
    "runner stands still": Fault(
        "a runner that does not go on (SIGSTOP)",
        "after the time that a step may take: *... (it did not answer for 2s)*",
        15,
        _NEXT,
    ),
    "step does not end": Fault(
        "an engine step that hangs",
        "after `OLLMLX_STEP_TIMEOUT` the runner's watchdog ends it: as if it was killed",
        20,
        _NEXT,
    ),
    "runner out of memory": Fault(
        "a runner that gets no more memory (RLIMIT_AS)",
        "500 or an `error` line for the request that needed it",
        20,
        "that request, or all of that runner if it died of it",
    ),
    "host terminated while idle": Fault(
        "SIGTERM, nothing to do", "connections are refused", 5, "nothing; exit code 0, no process left"
    ),
    "host terminated while decoding": Fault(
        "SIGTERM during an answer", "the whole answer, if it ends within 10 s", 15, "nothing"
    ),
    "host terminated while loading": Fault(
        "SIGTERM during a load, and a second one",
        "503 at the end of the drain; a broken connection at the second signal",
        5,
        "the requests that waited; no process left",
    ),
    "host terminated while prefilling": Fault(
        "SIGTERM during a prompt, and a second one",
        "a broken connection at the second signal",
        5,
        "that request; no process left",
    ),
    "host killed while loading": Fault(
        "`kill -9` of the host during a load",
        "a broken connection",
        5,
        "running requests; runners end within a second",
    ),
    "host killed while prefilling": Fault(
        "`kill -9` of the host during a prompt",
        "a broken connection",
        5,
        "running requests; runners end within a second",
    ),
    "host killed while decoding": Fault(
        "`kill -9` of the host during an answer",
        "a broken connection",
        5,
        "running requests; runners end within a second",
    ),
    "host killed while idle": Fault(
        "`kill -9` of the host",
        "connections are refused",
        5,
        "nothing; a restart removes what was left in the runtime directory",
    ),
    "disk full": Fault(
        "no space in the store while a model is made",
        "an error that says so",
        0,
        "nothing: what is stored is whole, the half-written file is gone",
    ),
    "runtime directory removed": Fault(
        "the directory of the sockets is removed",
        "nothing: running answers go on, the next load makes it again",
        10,
        "nothing",
    ),
    "machine sleeps": Fault(
        "host and runner are stopped (SIGSTOP) for longer than a runner may be silent, as when the machine sleeps",
        "nothing: answers go on",
        5,
        "nothing",
    ),
    "clients disconnect": Fault(
        "200 clients that leave at random",
        "others notice nothing",
        5,
        "nothing; each request is gone from the batch at once",
    ),
    "queue overflow": Fault(
        "more requests than `OLLAMA_MAX_QUEUE` wait for a model",
        "503 at once, with Ollama's text and `Retry-After`",
        5,
        "the refused requests",
    ),
    "keep_alive 0 while others stream": Fault(
        "`keep_alive` 0 while others stream", "nothing: the model goes after the last of them", 5, "nothing"
    ),
    "model does not fit": Fault(
        "a model that is larger than memory",
        "500: *model requires X but only Y are available (after Z overhead)*",
        0,
        "nothing; loaded models stay",
    ),
    "two servers on one port": Fault(
        "a second server on the same port", "exit code 1, and the variable to change", 0, "nothing"
    ),
    "two servers on one store": Fault(
        "a second server on the same store", "exit code 1, and the process that holds it", 0, "nothing"
    ),
}

injected: set[str] = set()


def fault(*keys: str) -> Callable[[Callable], Callable]:
    """Marks a test as the one that injects these rows."""
    injected.update(keys)
    unknown = set(keys) - FAULTS.keys()
    assert not unknown, unknown
    return pytest.mark.slow


def table() -> str:
    """The rows as Markdown."""
    lines = [
        "| fault | what the client sees | service again within | what is lost |",
        "| --- | --- | --- | --- |",
    ]
    for row in FAULTS.values():
        again = f"{row.seconds:g} s" if row.seconds else "at once"
        lines.append(f"| {row.what} | {row.client} | {again} | {row.lost} |")
    return "\n".join(lines) + "\n"


def document(text: str) -> str:
    """The document with the table of now in it."""
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + "\n" + table() + "\n" + _END + rest.split(_END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
    sys.stderr.write(f"wrote {len(FAULTS)} rows\n")
