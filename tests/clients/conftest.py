"""One running server with the demo model for all client libraries, once for each engine; a test that changes its models
cleans up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server
from tests.support.tiny_ggufs import make_demo_gguf


@pytest.fixture(scope="session", params=["mlx", "gguf"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`demo` is the bundled model, or the same weights and tokenizer in a GGUF file."""
    with Server() as server:
        server.format = request.param
        if request.param == "gguf":
            server.create("demo", make_demo_gguf(tmp_path_factory.mktemp("gguf") / "demo.gguf"))
        yield server
