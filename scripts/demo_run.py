"""Show the main job once: ask the demo model a question through the real `ollmlx` command.

`ollmlx run` starts a server for its own lifetime when none listens. A port that nobody uses and a store inside
the checkout keep this demonstration apart from any server and any models of the person who runs it.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    prompt = os.environ.get("OLLMLX_PROMPT") or "What is ollmlx?"
    command = Path(sys.executable).parent / "ollmlx"
    os.environ["OLLAMA_HOST"] = f"127.0.0.1:{free_port()}"
    os.environ["OLLAMA_MODELS"] = str(ROOT / "build" / "demo-models")
    # The prompt is all there is to read: a standard input that stays open without end must not be waited for.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    print(f">>> {prompt}", flush=True)
    os.execv(command, ["ollmlx", "run", "--verbose", "--think=false", "demo", prompt])


if __name__ == "__main__":
    main()
