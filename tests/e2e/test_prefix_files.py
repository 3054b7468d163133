"""A long conversation goes on where it was, also after an unload and after the server was started anew."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.server import Server
from tests.support.tiny_models import make_model

LONG = "The quick brown fox jumps over the lazy dog. " * 20
MODEL = "mine"


def cached(server: Server, messages: list[dict[str, str]], **fields: object) -> int:
    """Add an answer to the conversation; returns how many of its tokens were not computed again."""
    options = {"num_predict": 8, "temperature": 0}
    answer = server.post("/api/chat", model=MODEL, messages=messages, options=options, **fields)
    messages += [answer["message"], {"role": "user", "content": "And then?"}]
    return answer["prompt_eval_cached_count"]


def unload(server: Server) -> None:
    assert server.cli("stop", MODEL).returncode == 0
    deadline = time.monotonic() + 20
    while server.runner_processes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_conversation_survives_unload_and_restart(tmp_path: Path) -> None:
    with Server(OLLMLX_PREFIX_CACHE="1GB") as server:
        server.create(MODEL, make_model(tmp_path / "m", "llama"))
        messages = [{"role": "user", "content": LONG}]
        assert cached(server, messages) == 0
        unload(server)
        assert cached(server, messages) >= len(LONG)
        assert server.stop() == 0
        server.start()
        assert cached(server, messages) >= len(LONG)
        shown = server.cli("cache")
        assert "1 GB" in shown.stdout
        assert str(server.root / "cache" / "prefixes") in shown.stdout
        assert list((server.root / "cache" / "prefixes").glob("*/*"))
        assert server.cli("cache", "clear").stdout.startswith("removed ")
        assert not list((server.root / "cache" / "prefixes").glob("*/*"))
