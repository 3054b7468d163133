"""Names, the store and the model routes, over HTTP and through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.server import Server
from tests.support.tiny_models import make_model

ALIASES = [
    "mlx-community/Tiny-Llama",
    "MLX-Community/tiny-llama:latest",
    "hf.co/mlx-community/Tiny-Llama",
    "huggingface.co/mlx-community/Tiny-Llama",
    "https://huggingface.co/mlx-community/Tiny-Llama",
]


@pytest.fixture(scope="module")
def tiny(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    server.create(ALIASES[0], make_model(tmp_path_factory.mktemp("named") / "m", "llama"))
    return ALIASES[0]


@pytest.mark.parametrize("name", ALIASES)
def test_one_model_under_all_its_names_on_every_route(server: Server, tiny: str, name: str) -> None:
    options = {"num_predict": 4, "temperature": 0}
    assert server.post("/api/show", model=name)["details"]["format"] == "mlx"
    assert server.post("/api/generate", model=name, prompt="Hi", options=options)["done"]
    message = {"role": "user", "content": "Hi"}
    assert server.post("/api/chat", model=name, messages=[message], options=options)["model"] == name
    listed = [m["name"] for m in server.http.get("/api/tags").json()["models"]]
    assert listed.count("mlx-community/Tiny-Llama:latest") == 1
    running = [m["name"] for m in server.http.get("/api/ps").json()["models"]]
    assert running.count("mlx-community/Tiny-Llama:latest") == 1
    assert server.cli("show", name).returncode == 0


def test_an_mlx_model_gets_a_runner_whatever_it_is_called(server: Server, tmp_path: Path) -> None:
    server.create("nothing-in-this-name:gguf-q4", make_model(tmp_path / "m", "llama"))
    server.post(
        "/api/generate", model="nothing-in-this-name:gguf-q4", prompt="Hi", options={"num_predict": 2}
    )
    assert any(
        "nothing-in-this-name:gguf-q4" in m["name"] for m in server.http.get("/api/ps").json()["models"]
    )


@pytest.mark.parametrize("name", ["mlx-community_Tiny-Llama", "mlx-community-Tiny-Llama"])
def test_underscore_forms_are_other_names_everywhere(server: Server, tiny: str, name: str) -> None:
    for path in ("/api/show", "/api/generate", "/api/chat"):
        body = {"model": name, "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
        response = server.http.post(path, json=body)
        assert response.status_code == 404, path
        assert response.json()["error"] == f"model '{name}' not found"


def test_create_list_show_copy_delete(server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", "qwen3")
    server.create(
        "mine", model, 'SYSTEM """You are terse."""', "PARAMETER temperature 0", "PARAMETER stop END"
    )
    shown = server.post("/api/show", model="mine")
    assert shown["system"] == "You are terse."
    assert "temperature" in shown["parameters"]
    assert shown["model_info"]["general.architecture"] == "qwen3"
    assert "completion" in shown["capabilities"]

    assert server.cli("cp", "mine", "yours").stdout == "copied 'mine' to 'yours'\n"
    assert "yours:latest" in server.cli("list").stdout
    assert server.cli("rm", "mine").stdout == "deleted 'mine'\n"
    answer = server.post("/api/generate", model="yours", prompt="Hi", options={"num_predict": 3})
    assert answer["eval_count"] <= 3
    assert server.cli("rm", "mine").returncode == 1


def test_a_deleted_model_frees_its_blobs_and_no_others(server: Server, tmp_path: Path) -> None:
    blobs = server.models / "blobs"
    before = {p.name for p in blobs.iterdir()}
    server.create("short-lived", make_model(tmp_path / "m", "llama", seed=99))
    assert {p.name for p in blobs.iterdir()} > before
    assert server.http.request("DELETE", "/api/delete", json={"model": "short-lived"}).status_code == 200
    assert server.http.post("/api/show", json={"model": "short-lived"}).status_code == 404
    assert server.post("/api/generate", model="demo", prompt="Hi", options={"num_predict": 2})["done"]
