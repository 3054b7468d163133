"""Building the package and installing it in fresh environments."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, **({"stdin": subprocess.DEVNULL} | kwargs))
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def go() -> str:
    """The Go that builds here; it may be beside the interpreter that runs the tests, and not on PATH."""
    return run(sys.executable, ROOT / "scripts/hatch_build.py", "--find-go").stdout.strip()


@dataclass
class Built:
    sdist: Path
    source: Path  # the sdist, unpacked
    wheel: Path  # built from `source`


@dataclass
class Environment:
    """A fresh virtual environment that sees the installed dependencies, but not this checkout."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def command(self) -> Path:
        return self.path / "bin" / "ollmlx"

    @property
    def package(self) -> Path:
        [directory] = self.path.glob("lib/python3*/site-packages/ollmlx")
        return directory

    def install(self, *what: str | Path) -> None:
        run(
            *(sys.executable, "-m", "pip", "--python", self.python, "install"),
            *("--quiet", "--no-index", "--no-deps", "--no-build-isolation", *what),
            env={**os.environ, "OLLMLX_GO": go()},
        )


def make_environment(path: Path) -> Environment:
    venv.create(path, with_pip=False, symlinks=True)
    fresh = Environment(path)
    # Dependencies come from the environment that runs the tests, by path, so that nothing is downloaded. What that
    # environment has by .pth files, as this checkout itself, stays out: they do not nest.
    [site_packages] = path.glob("lib/python3*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return fresh
