"""A hub and a server that pulls from it, for all tests that break neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer
from tests.support.server import Server
from tests.support.tiny_models import make_model

TOKEN = "hf_alice"


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    with HubServer() as hub:
        hub.users = {TOKEN: "alice", "hf_bob": "bob"}
        yield hub


@pytest.fixture(autouse=True)
def _no_faults(hub: HubServer) -> None:
    hub.reset()


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    """What makes a server or command ask this hub, with a home of its own."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "HOME": str(home), "HF_TOKEN": ""}


@pytest.fixture(scope="session")
def server(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without a login."""
    with Server(**environment(hub, tmp_path_factory.mktemp("home"))) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 430 KB in one file."""
    return make_model(tmp_path_factory.mktemp("tiny") / "m", "llama")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind of model in two files with an index."""
    import mlx.core as mx

    directory = make_model(tmp_path_factory.mktemp("sharded") / "m", "llama", seed=7)
    weights = mx.load(str(directory / "model.safetensors"))
    (directory / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        mx.save_safetensors(str(directory / file), {name: weights[name] for name in part}, {"format": "mlx"})
        index |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return directory
