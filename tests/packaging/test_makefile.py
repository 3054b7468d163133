"""The Makefile says what is missing on a machine that lacks something."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(tmp_path: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": path or os.environ["PATH"]}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV"):
        env.pop(name, None)
    command = ["make", "-C", str(ROOT), f"VENV={tmp_path / 'venv'}", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def fake_python(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "python-fake"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_help_lists_every_target(tmp_path: Path) -> None:
    out = make(tmp_path, "help").stdout
    for target in (
        "help", "run", "build", "test", "test-go", "test-python", "lint", "proto", "proto-check",
        "wheel", "bench", "clean",
    ):  # fmt: skip
        assert f"  {target} " in out


def test_old_python_is_refused_by_name(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "exit 1")
    done = make(tmp_path, "build", f"PYTHON={python}")
    assert done.returncode != 0
    assert f"{python} is not Python 3.11 or newer" in done.stderr


def test_missing_python_is_explained(tmp_path: Path) -> None:
    done = make(tmp_path, "build", "PYTHON=")
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr


def test_missing_venv_module_is_explained(tmp_path: Path) -> None:
    python = fake_python(tmp_path, 'case "$*" in *ensurepip*) exit 1;; esac; exit 0')
    done = make(tmp_path, "build", f"PYTHON={python}")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


@pytest.mark.parametrize("prompt", ['What\'s "this"?', "it costs $5 and $(nothing)", "a\\b; echo hi"])
def test_prompt_reaches_the_command_as_it_was_typed(tmp_path: Path, prompt: str) -> None:
    # A target that only shows what the recipe of `run` gets by its environment.
    show = tmp_path / "show.mk"
    show.write_text(f"include {ROOT / 'Makefile'}\n\n.PHONY: show\nshow:\n\t@printenv OLLMLX_PROMPT\n")
    command = ["make", "-s", "-f", str(show), "show", f"PROMPT={prompt}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == prompt + "\n", done.stderr
