"""login, logout, whoami and search: asked by the command itself, with a home of its own."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import TOKEN, environment
from tests.support.hub_server import HubServer
from tests.support.server import BINARY


def ollmlx(
    hub: HubServer, home: Path, *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    settings = {
        **os.environ,
        **environment(hub, home),
        "OLLMLX_PYTHON": sys.executable,
        "OLLMLX_CACHE": str(home),
    }
    return subprocess.run(
        [BINARY, *arguments],
        env=settings | variables,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_login_and_its_end(hub: HubServer, tmp_path: Path) -> None:
    kept = tmp_path / "hf" / "token"
    asked = ollmlx(hub, tmp_path, "whoami")
    assert (asked.returncode, asked.stderr) == (1, 'Error: not logged in; run "ollmlx login"\n')

    wrong = ollmlx(hub, tmp_path, "login", "--token-stdin", stdin="hf_wrong\n")
    assert wrong.returncode == 1 and "does not know this token; nothing was changed" in wrong.stderr
    assert not kept.exists()

    right = ollmlx(hub, tmp_path, "login", "--token-stdin", stdin=f"{TOKEN}\n")
    assert (right.returncode, right.stdout) == (0, f"Logged in to {hub.url} as alice\n"), right.stderr
    assert kept.read_text() == TOKEN and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert TOKEN not in right.stdout + right.stderr

    shown = dict(line.split(maxsplit=1) for line in ollmlx(hub, tmp_path, "whoami").stdout.splitlines())
    assert shown["name"] == "alice" and shown["token"] == "login"
    other = ollmlx(hub, tmp_path, "whoami", HF_TOKEN="hf_bob").stdout
    assert "bob" in other and "HF_TOKEN" in other

    out = ollmlx(hub, tmp_path, "logout")
    assert (out.returncode, out.stdout) == (0, "Logged out\n") and not kept.exists()
    again = ollmlx(hub, tmp_path, "logout")
    assert (again.returncode, again.stderr) == (1, "Error: not logged in\n")
    assert not list(Path(tmp_path).glob("ollmlx-*"))


def test_a_token_that_is_typed_is_not_shown(hub: HubServer, tmp_path: Path) -> None:
    settings = {**os.environ, **environment(hub, tmp_path), "OLLMLX_PYTHON": sys.executable}
    outer, inner = pty.openpty()
    process = subprocess.Popen([BINARY, "login"], env=settings, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    seen = b""
    while b"not shown" not in seen:
        seen += os.read(outer, 1024)
    os.write(outer, f"{TOKEN}\n".encode())
    try:
        while chunk := os.read(outer, 1024):
            seen += chunk
    except OSError:
        pass  # the other end is closed
    os.close(outer)
    assert process.wait(60) == 0
    assert b"as alice" in seen and TOKEN.encode() not in seen


def test_search(hub: HubServer, tmp_path: Path) -> None:
    for i in range(3):
        hub.add(f"mlx-community/Findable-{i}", {"config.json": b"{}"}, downloads=10**i)
    hub.add("Qwen/Findable", {"config.json": b"{}"}, downloads=50, tags=(), gated=set())
    rows = [line.split() for line in ollmlx(hub, tmp_path, "search", "findable").stdout.splitlines()]
    assert rows[0][0] == "NAME"
    assert [row[0] for row in rows[1:]] == [f"mlx-community/Findable-{i}" for i in (2, 1, 0)]
    every = ollmlx(hub, tmp_path, "search", "--all", "--limit", "2", "findable").stdout
    assert "hf.co/Qwen/Findable" in every and "(gated)" in every and len(every.splitlines()) == 3
    none = ollmlx(hub, tmp_path, "search", "nothing-like-it")
    assert none.returncode == 1 and 'no model on the hub matches "nothing-like-it"' in none.stderr


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_TOKEN": "hf_wrong"}, 'does not accept the token; run "ollmlx login"'),
    ],
)
def test_a_hub_that_does_not_answer(
    hub: HubServer, tmp_path: Path, variables: dict[str, str], text: str
) -> None:
    failed = ollmlx(hub, tmp_path, "whoami", **({"HF_TOKEN": TOKEN} | variables))
    assert failed.returncode == 1 and text in failed.stderr and failed.stderr.count("\n") == 1
