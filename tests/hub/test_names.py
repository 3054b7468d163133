"""One table of names: each form means the same model, or none, on every way into the program."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.server import Server
from tests.support.tiny_models import make_model

MLX = "mlx-community/Tiny_Names-4bit:latest"
HUB = "hf.co/Qwen/Tiny.Names:dev"
PLAIN = "tiny_names:Q4_K_M"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MISSING, INVALID = "missing", "invalid"

FORMS = {
    # the hub's MLX organisation needs no host
    "mlx-community/Tiny_Names-4bit": MLX,
    "mlx-community/tiny_names-4BIT": MLX,
    "MLX-Community/Tiny_Names-4bit": MLX,
    "mlx-community/Tiny_Names-4bit:latest": MLX,
    "mlx-community/Tiny_Names-4bit:LATEST": MLX,
    "mlx-community/Tiny_Names-4bit@main": MLX,
    "hf.co/mlx-community/Tiny_Names-4bit": MLX,
    "HF.CO/mlx-community/Tiny_Names-4bit": MLX,
    "huggingface.co/mlx-community/Tiny_Names-4bit": MLX,
    "www.huggingface.co/mlx-community/Tiny_Names-4bit:latest": MLX,
    "https://hf.co/mlx-community/Tiny_Names-4bit": MLX,
    "https://huggingface.co/mlx-community/Tiny_Names-4bit": MLX,
    "https://huggingface.co/mlx-community/Tiny_Names-4bit/": MLX,
    "https://huggingface.co/mlx-community/Tiny_Names-4bit/tree/main": MLX,
    "HTTPS://HuggingFace.co/MLX-COMMUNITY/tiny_names-4bit": MLX,
    # other organisations, and revisions
    "hf.co/Qwen/Tiny.Names:dev": HUB,
    "hf.co/qwen/tiny.names:DEV": HUB,
    "hf.co/Qwen/Tiny.Names@dev": HUB,
    "huggingface.co/Qwen/Tiny.Names:dev": HUB,
    "https://huggingface.co/Qwen/Tiny.Names@dev": HUB,
    "https://huggingface.co/Qwen/Tiny.Names/tree/dev": HUB,
    "Qwen/Tiny.Names@dev": HUB,
    "Qwen/Tiny.Names:dev": HUB,
    # Ollama's registry
    "tiny_names:Q4_K_M": PLAIN,
    "Tiny_Names:q4_k_m": PLAIN,
    "library/tiny_names:Q4_K_M": PLAIN,
    "registry.ollama.ai/library/tiny_names:Q4_K_M": PLAIN,
    "https://registry.ollama.ai/library/tiny_names:Q4_K_M": PLAIN,
    # names of nothing that is here
    "tiny_names": MISSING,
    "tiny-names:Q4_K_M": MISSING,
    "Qwen/Tiny.Names": MISSING,
    "mlx-community_Tiny_Names-4bit": MISSING,
    "mlx_community/Tiny_Names-4bit": MISSING,
    "mlx-community/Tiny_Names-4bit:8bit": MISSING,
    f"mlx-community/Tiny_Names-4bit@{COMMIT}": MISSING,
    "registry.ollama.ai/mlx-community/Tiny_Names-4bit": MISSING,
    "example.com/mlx-community/Tiny_Names-4bit": MISSING,
    "localhost:5000/mlx-community/Tiny_Names-4bit": MISSING,
    # no names
    " mlx-community/Tiny_Names-4bit": INVALID,
    "mlx-community/Tiny_Names-4bit ": INVALID,
    "mlx-community/Tiny Names-4bit": INVALID,
    "mlx-community/Tiny_Names-4bit:": INVALID,
    "mlx-community/Tiny_Names-4bit@": INVALID,
    "mlx-community/Tiny_Names-4bit:latest@main": INVALID,
    "mlx-community/Tiny_Names-4bit@refs/pr/1": INVALID,
    "mlx-community//Tiny_Names-4bit": INVALID,
    "hf.co/Tiny_Names-4bit": INVALID,
    "registry.ollama.ai/library/tiny_names@main": INVALID,
    "../mlx-community/Tiny_Names-4bit": INVALID,
    "mlx-community/../Tiny_Names-4bit": INVALID,
    "mlx-community/Tiny_Names-4bit@../main": INVALID,
    "hf.co/../../etc/passwd": INVALID,
    "mlx-community\\Tiny_Names-4bit": INVALID,
    "mlx-community/Tiny_Names-4bit\n": INVALID,
    f"tiny_names@sha256:{'0' * 64}": INVALID,
    "file:///tiny_names": INVALID,
}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server with the three models, and what each answers."""
    home = tmp_path_factory.mktemp("home")
    # Without a hub or a registry that could be asked.
    with Server(HOME=str(home), HF_HUB_OFFLINE="1") as server:
        answers = {}
        for seed, name in enumerate((MLX, HUB, PLAIN)):
            server.create(name, make_model(home / str(seed), "llama", seed=seed))
            status, answers[name] = native(server, name)
            assert status == 200, server.log
        assert len(set(answers.values())) == 3
        yield server, answers


ASK = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 6}


def native(server: Server, name: str) -> tuple[int, str]:
    body = {
        "model": name,
        "messages": ASK["messages"],
        "options": {"temperature": 0, "num_predict": 6},
        "stream": False,
    }
    response = server.http.post("/api/chat", json=body)
    return response.status_code, response.json().get("message", {}).get("content", "")


def openai(server: Server, name: str) -> tuple[int, str]:
    response = server.http.post("/v1/chat/completions", json={"model": name, **ASK})
    content = response.json()["choices"][0]["message"]["content"] if response.status_code == 200 else ""
    return response.status_code, content


def anthropic(server: Server, name: str) -> tuple[int, str]:
    response = server.http.post("/v1/messages", json={"model": name, **ASK})
    return response.status_code, response.json()["content"][0]["text"] if response.status_code == 200 else ""


def test_there_are_enough() -> None:
    assert len(FORMS) >= 40 and len({f.lower() for f in FORMS}) >= 40


@pytest.mark.parametrize("form", FORMS)
def test_a_name_means_one_thing(named: tuple[Server, dict[str, str]], form: str) -> None:
    server, answers = named
    want = FORMS[form]
    shown = server.http.post("/api/show", json={"model": form})
    command = server.cli("show", "--modelfile", form)
    retrieved = server.http.get(f"/v1/models/{quote(form, safe='')}").status_code
    ways = {way.__name__: way(server, form) for way in (native, openai, anthropic)}
    if want in answers:
        assert f"# FROM {want}\n" in shown.json()["modelfile"]
        assert command.returncode == 0 and f"# FROM {want}\n" in command.stdout, command.stderr
        assert retrieved == 200
        assert ways == dict.fromkeys(ways, (200, answers[want]))
        return
    statuses = {way: status for way, (status, _) in ways.items()}
    expected = 404 if want == MISSING else 400
    assert (shown.status_code, command.returncode) == (expected, 1), shown.text
    assert statuses == dict.fromkeys(ways, expected)
    assert retrieved == expected
    if want == INVALID:
        assert shown.json()["error"] == "invalid model name" and "invalid model name" in command.stderr
        pulled = server.cli("pull", form)
        assert pulled.returncode == 1 and "invalid model name" in pulled.stderr
