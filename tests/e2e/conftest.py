"""One running server with the demo model for the tests that do not break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """For tests that kill something."""
    with Server() as server:
        yield server
