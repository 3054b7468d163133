"""One sdist and one wheel, built from it, for all packaging tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.installation import ROOT, Built, Environment, make_environment, run


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory, cwd=ROOT)
    [sdist] = directory.glob("*.tar.gz")
    shutil.unpack_archive(sdist, directory)
    source = directory / sdist.name.removesuffix(".tar.gz")
    environment = {**os.environ, "OLLMLX_COMMIT": "0123abcd"}
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        directory,
        cwd=source,
        env=environment,
    )
    [wheel] = directory.glob("*.whl")
    return Built(sdist, source, wheel)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return make_environment(tmp_path / "venv")


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel, installed in a fresh environment that no test may change."""
    fresh = make_environment(tmp_path_factory.mktemp("installed") / "venv")
    fresh.install(built.wheel)
    return fresh
