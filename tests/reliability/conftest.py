"""Servers whose runners are fakes: real processes that can be told to take their time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.server import REPOSITORY, Server

FAKE_PYTHON = REPOSITORY / "tests" / "fakes" / "python"


@pytest.fixture
def fake_server() -> Iterator[Callable[..., Server]]:
    """Starts a server; the options are those of tests/fakes/fake_runner.py."""
    servers: list[Server] = []

    def start(options: str = "", **environment: str) -> Server:
        server = Server(
            OLLMLX_PYTHON=str(FAKE_PYTHON), FAKE_PYTHON=sys.executable, FAKE_OPTIONS=options, **environment
        )
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        for runner in server.runner_processes():
            runner.resume()
        server.__exit__()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server with real runners, for tests that break them."""
    with Server() as server:
        yield server
