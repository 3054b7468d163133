"""The three commands of docs/QUICKSTART_SIMPLE.md, typed as they stand there, against the tests' hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.conftest import environment
from tests.support.hub_server import HubServer
from tests.support.installation import ROOT, go, make_environment
from tests.support.server import free_port
from tests.support.tiny_models import make_model

COMMANDS = re.search(r"```sh\n(.*?)```", (ROOT / "docs/QUICKSTART_SIMPLE.md").read_text(), re.DOTALL)[
    1
].splitlines()


@pytest.mark.slow
def test_quick_start(hub: HubServer, tmp_path: Path) -> None:
    assert len(COMMANDS) == 3
    hub.add("mlx-community/Qwen3-0.6B-4bit", make_model(tmp_path / "m", "qwen3"))
    fresh = make_environment(tmp_path / "venv")
    # As in an activated environment; without a package index, dependencies being here already.
    pip = fresh.path / "bin" / "pip"
    pip.write_text(
        f'#!/bin/sh\ncommand="$1"; shift\n'
        f'exec "{sys.executable}" -m pip --python "{fresh.python}" "$command" --quiet --no-index --no-deps '
        f'--no-build-isolation "$@"\n'
    )
    pip.chmod(0o755)
    settings = {
        **os.environ,
        **environment(hub, tmp_path),
        "PATH": f"{fresh.path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "OLLAMA_HOST": f"127.0.0.1:{free_port()}",
        "OLLMLX_GO": go(),
        "GOCACHE": subprocess.run([go(), "env", "GOCACHE"], capture_output=True, text=True).stdout.strip(),
        "GOMODCACHE": subprocess.run(
            [go(), "env", "GOMODCACHE"], capture_output=True, text=True
        ).stdout.strip(),
        "TMPDIR": str(tmp_path),
    }
    outputs = []
    for command in COMMANDS:
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        outputs.append((done.stdout, done.stderr))
    _, (found, _), (answer, progress) = outputs
    assert "mlx-community/Qwen3-0.6B-4bit" in found
    assert {"pulling manifest", "pulling model.safetensors:", "success"} <= set(progress.splitlines())
    assert answer.strip()
    assert (fresh.package / "_bin" / "ollmlx").is_file()
