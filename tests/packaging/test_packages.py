"""sdist, wheel and editable install hold what they should and give a command that works."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sysconfig
import tarfile
import zipfile
from email.parser import Parser

import pytest

from ollmlx import __version__
from tests.support.installation import ROOT, Built, Environment, run
from tests.support.server import free_port

pytestmark = pytest.mark.slow

WHEEL_BUDGET = 25_000_000  # bytes; the program and the demo model are nearly all of it


def test_sdist_has_what_a_build_needs_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if "/" in member.name}
    for needed in (
        "pyproject.toml", "LICENSE", "README.md", "PKG-INFO", "Makefile", "go/go.mod", "go/go.sum",
        "go/cmd/ollmlx/main.go", "proto/ollmlx/runner/v1/runner.proto",
        "python_runner/ollmlx/runner/v1/runner_pb2.py", "scripts/hatch_build.py",
        "python_runner/ollmlx/models/demo/model.safetensors", "tests/packaging/conftest.py", ".ci/run",
    ):  # fmt: skip
        assert needed in names
    foreign = re.compile(
        r"(^|/)(_bin|\.venv|venv|build|dist|__pycache__|\.git|node_modules)(/|$)|\.(so|pyc|whl)$"
    )
    assert not [name for name in names if foreign.search(name)]


def test_wheel_is_for_this_platform_and_every_python(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        binary = archive.getinfo("ollmlx/_bin/ollmlx")
        wheel = Parser().parsestr(archive.read(f"ollmlx-{__version__}.dist-info/WHEEL").decode())
    platform = re.sub(r"[-. ]", "_", sysconfig.get_platform())
    assert built.wheel.name.startswith(f"ollmlx-{__version__}-py3-none-{platform.split('_')[0]}")
    assert wheel["Tag"].startswith("py3-none-")
    assert wheel["Root-Is-Purelib"] == "false"
    assert stat.S_IMODE(binary.external_attr >> 16) & 0o111 == 0o111
    assert "ollmlx/models/demo/model.safetensors" in names
    assert "ollmlx/runner/__main__.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".go"))]
    assert {name.split("/")[0] for name in names} == {"ollmlx", f"ollmlx-{__version__}.dist-info"}
    assert built.wheel.stat().st_size < WHEEL_BUDGET


def test_wheel_metadata(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"ollmlx-{__version__}.dist-info/METADATA").decode())
    requirements = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    names = {re.split(r"[\[<>=!~;\s]", r)[0] for r in requirements}
    assert names >= {"mlx", "mlx-lm", "grpcio", "protobuf", "huggingface-hub", "click", "psutil"}
    assert not names & {"pytest", "ruff", "hatchling", "grpcio-tools"}
    assert "mlx-lm==0.32.2" in requirements
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "MIT"


def test_binary_is_static_and_says_no_path_of_the_builder(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        binary = archive.read("ollmlx/_bin/ollmlx")
    assert str(built.source).encode() not in binary
    assert str(ROOT / "go").encode() not in binary
    assert b"ld-linux" not in binary


def environment_variables(tmp_path: object) -> dict[str, str]:
    """A machine where nothing is set up: no server, no models, no settings."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    return {**kept, "HOME": str(tmp_path), "OLLAMA_HOST": "127.0.0.1:9"}


def test_installed_wheel_gives_the_command(installed: Environment, tmp_path: object) -> None:
    env = environment_variables(tmp_path)
    done = run(installed.command, "--version", env=env)
    assert done.stdout.startswith(f"ollmlx version is {__version__}\n")

    report = subprocess.run(
        [installed.command, "doctor", "--json"], env=env, capture_output=True, text=True, timeout=120
    )
    found = json.loads(report.stdout)
    assert found["host"]["commit"] == "0123abcd"
    assert found["host"]["python"] == str(installed.python)
    assert found["host"]["python_source"] == "OLLMLX_PYTHON"
    assert found["host"]["program"] == str(installed.package / "_bin" / "ollmlx")
    assert found["python"]["problems"] == [], report.stdout
    assert found["host"]["problems"] == []
    assert report.returncode == 0


def test_bare_program_finds_the_python_around_it(installed: Environment, tmp_path: object) -> None:
    report = subprocess.run(
        [installed.package / "_bin" / "ollmlx", "doctor", "--json"],
        env=environment_variables(tmp_path), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    host = json.loads(report.stdout)["host"]
    assert host["python"] == str(installed.path / "bin" / "python3")
    assert host["python_source"] == "the environment of the program"


def test_named_python_wins_over_the_launchers_own(installed: Environment, tmp_path: object) -> None:
    env = {**environment_variables(tmp_path), "OLLMLX_PYTHON": "/bin/false"}
    done = subprocess.run([installed.command, "doctor"], env=env, capture_output=True, text=True, timeout=60)
    assert "/bin/false" in done.stdout
    assert done.returncode == 1


def test_installed_wheel_answers_from_the_bundled_model(installed: Environment, tmp_path: object) -> None:
    """`ollmlx run` right after installation: no server, no network, no model pulled."""
    with_free_port = {**environment_variables(tmp_path), "OLLAMA_HOST": f"127.0.0.1:{free_port()}"}
    done = run(
        installed.command, "run", "demo", "--think=false", "What is ollmlx?",
        env=with_free_port, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert "MLX" in done.stdout
    assert "starting one until this command ends" in done.stderr


def test_editable_install_uses_the_source_tree(
    built: Built, environment: Environment, tmp_path: object
) -> None:
    binary = built.source / "python_runner/ollmlx/_bin/ollmlx"
    binary.unlink(missing_ok=True)
    environment.install("-e", built.source)
    assert binary.exists(), "an editable install builds the program into the source tree"
    env = environment_variables(tmp_path)
    assert run(environment.command, "--version", env=env).stdout.startswith(
        f"ollmlx version is {__version__}"
    )
    where = run(environment.python, "-c", "import ollmlx; print(ollmlx.__file__)", env=env).stdout.strip()
    assert where == str(built.source / "python_runner/ollmlx/__init__.py")


def test_missing_program_is_explained(built: Built, environment: Environment, tmp_path: object) -> None:
    environment.install(built.wheel)
    env = environment_variables(tmp_path)
    binary = environment.package / "_bin" / "ollmlx"

    binary.write_bytes(b"not a program")
    wrong = subprocess.run([environment.command, "list"], env=env, capture_output=True, text=True)
    assert wrong.returncode == 126
    assert "another kind of machine" in wrong.stderr

    shutil.rmtree(binary.parent)
    missing = subprocess.run([environment.command, "list"], env=env, capture_output=True, text=True)
    assert missing.returncode == 127
    assert "the server program is missing" in missing.stderr
    assert "pip install" in missing.stderr


def test_launcher_imports_nothing_heavy(installed: Environment, tmp_path: object) -> None:
    """The launcher stands before every command; what it imports is what every command waits for."""
    code = "import sys; before = set(sys.modules); import ollmlx._launcher; print(*set(sys.modules) - before)"
    done = run(installed.python, "-I", "-c", code, env=environment_variables(tmp_path))
    assert set(done.stdout.split()) == {"ollmlx", "ollmlx._launcher"}
