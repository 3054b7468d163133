"""Fixtures of the runner's tests: real runner processes with tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.runner_process import RunnerProcess, SessionClient
from tests.support.tiny_models import make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the model of an architecture once per test run."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = make_model(tmp_path_factory.mktemp("models") / architecture, architecture)
        return made[architecture]

    return make


@pytest.fixture(scope="module")
def runner(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RunnerProcess]:
    """A runner with a tiny llama whose answers do not end on their own, shared by the tests of a module.
    Of the MLX engine, unless a module is parametrized with others."""
    engine, directory = getattr(request, "param", "mlx"), tmp_path_factory.mktemp("endless")
    if engine == "gguf":
        from tests.support.tiny_ggufs import make_gguf

        model = make_gguf(directory / "llama.gguf", "llama", endless=True)
    else:
        model = make_model(directory, "llama", endless=True)
    with RunnerProcess(engine=engine) as process:
        process.load(model, num_ctx=1024, num_parallel=8 if engine == "gguf" else 0)
        yield process


@pytest.fixture
def session(runner: RunnerProcess) -> Iterator[SessionClient]:
    with runner.session() as client:
        yield client
