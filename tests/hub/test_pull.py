"""Pulls from a hub that works: what is fetched, what is told, what is kept, and that it runs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import TOKEN, environment
from tests.support.hub_server import HubServer, read, sha256
from tests.support.server import Server
from tests.support.tiny_ggufs import make_gguf
from tests.support.tiny_models import ARCHITECTURES, make_model
from tests.support.tiny_projectors import make_projector
from tests.support.tiny_vision_models import picture

WEIGHTS = r"/cdn/"


def pull(server: Server, model: str) -> list[dict[str, Any]]:
    """The events of a pull, of which the last says how it went."""
    with server.stream("/api/pull", model=model) as events:
        events = list(events)
    highest: dict[str, int] = {}
    for event in events:
        if digest := event.get("digest"):
            done = event.get("completed", 0)
            assert highest.get(digest, 0) <= done <= event["total"], event
            highest[digest] = done
    return events


def answer(server: Server, model: str) -> str:
    options = {"temperature": 0, "num_predict": 6}
    return server.post("/api/generate", model=model, prompt="Hello", options=options)["response"]


def names(server: Server) -> list[str]:
    return [m["name"] for m in server.http.get("/api/tags").json()["models"]]


def blob(server: Server, digest: str) -> Path:
    return server.models / "blobs" / f"sha256-{digest}"


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_pull_then_run(hub: HubServer, server: Server, tmp_path: Path, architecture: str) -> None:
    name = f"mlx-community/Tiny-{architecture}"
    hub.add(name, make_model(tmp_path / "m", architecture))
    assert pull(server, name)[-1] == {"status": "success"}
    assert answer(server, name)
    # Loaded models take memory, and this test is run for many.
    server.post("/api/generate", model=name, keep_alive=0)
    hub.reset()
    assert pull(server, name)[-1] == {"status": "success"}
    assert hub.body_bytes(".") == 0, hub.log


def test_events_of_a_sharded_model(hub: HubServer, server: Server, sharded: Path) -> None:
    hub.add("mlx-community/Sharded-4bit", sharded)
    events = pull(server, "mlx-community/sharded-4BIT")
    statuses = list(dict.fromkeys(e["status"] for e in events))
    assert statuses[0] == "pulling manifest"
    assert statuses[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
    files = read(sharded)
    for path, content in files.items():
        of_file = [e for e in events if e["status"] == f"pulling {path}"]
        assert {e["digest"] for e in of_file} == {f"sha256:{sha256(content)}"}
        assert of_file[-1]["completed"] == of_file[-1]["total"] == len(content)
    whole = [e for e in events if e["status"] == "pulling mlx-community/Sharded-4bit:latest"]
    assert len({e["digest"] for e in whole}) == 1
    assert whole[-1]["completed"] == whole[-1]["total"] == sum(map(len, files.values()))
    # The hub's spelling is the one that is kept.
    assert "mlx-community/Sharded-4bit:latest" in names(server)
    assert answer(server, "mlx-community/Sharded-4bit")


def test_only_what_a_model_needs_is_fetched(hub: HubServer, server: Server, tiny: Path) -> None:
    extra = {
        "pytorch_model.bin": b"pickle", "modeling_tiny.py": b"import os", "README.md": b"# Tiny",
        ".gitattributes": b"x",
        "onnx/model.onnx": b"x", "original/consolidated.safetensors": b"x", "LICENSE": b"Do as you like.",
        "config.json": json.dumps({**json.loads((tiny / "config.json").read_text()),
                                   "auto_map": {"AutoModelForCausalLM": "modeling_tiny.Tiny"}}).encode(),
        # What tokenizer.json says is enough without the code.
        "tokenizer_config.json": json.dumps({**json.loads((tiny / "tokenizer_config.json").read_text()),
                                             "auto_map": {"AutoTokenizer": ["t.T", None]}}).encode(),
    }  # fmt: skip
    hub.add("mlx-community/Extra", {**read(tiny), **extra})
    assert server.post("/api/pull", model="mlx-community/Extra") == {"status": "success"}
    asked = {r.path.rsplit("/", 1)[1] for r in hub.requests("/resolve/")}
    # Of files with content that is here already, some are not asked for.
    assert {"config.json", "LICENSE"} <= asked <= {*read(tiny), "LICENSE"}
    shown = server.post("/api/show", model="mlx-community/Extra")
    assert shown["license"] == "Do as you like."
    assert answer(server, "mlx-community/Extra")


def test_show_and_list_tell_the_truth(hub: HubServer, server: Server, tiny: Path) -> None:
    repository = hub.add(
        "Qwen/Told", tiny, card={"license": "other", "license_name": "tongyi", "license_link": "LINK"}
    )
    pull(server, "https://huggingface.co/Qwen/Told")
    shown = server.post("/api/show", model="hf.co/Qwen/Told")
    assert shown["license"] == "License: tongyi\nLINK"
    info = shown["model_info"]
    assert info["general.parameter_count"] > 100_000 and info["llama.context_length"] == 2048
    assert info["general.source.huggingface.repository"] == "Qwen/Told"
    assert info["general.source.url"] == f"{hub.url}/Qwen/Told/tree/{repository.heads['main']}"
    assert shown["capabilities"] == ["completion"]
    listed = next(
        m for m in server.http.get("/api/tags").json()["models"] if m["name"] == "hf.co/Qwen/Told:latest"
    )
    assert sum(map(len, read(tiny).values())) < listed["size"] < sum(map(len, read(tiny).values())) + 2000
    # A name without a host finds it, too, once it is here.
    assert server.post("/api/show", model="Qwen/Told")["model_info"] == info


def test_revisions_are_models_of_their_own(hub: HubServer, server: Server, tiny: Path, sharded: Path) -> None:
    repository = hub.add("mlx-community/Branched", tiny)
    commit = repository.commit(read(sharded), branch="v2")
    assert pull(server, "mlx-community/Branched@v2")[-1] == {"status": "success"}
    assert "mlx-community/Branched:v2" in names(server) and "mlx-community/Branched:latest" not in names(
        server
    )
    hub.reset()
    assert pull(server, f"mlx-community/Branched:{commit}")[-1] == {"status": "success"}
    assert not hub.requests(WEIGHTS)
    error = pull(server, "mlx-community/Branched@v3")[-1]["error"]
    assert error == f'mlx-community/Branched has no revision "v3" on {hub.url}'


def test_an_update_fetches_what_changed(hub: HubServer, server: Server, tiny: Path) -> None:
    repository = hub.add("mlx-community/Updated", tiny)
    pull(server, "mlx-community/Updated")
    hub.reset()
    template = b"{{ messages[0].content }}"
    repository.commit({**read(tiny), "chat_template.jinja": template})
    assert pull(server, "mlx-community/Updated")[-1] == {"status": "success"}
    assert hub.body_bytes(".") == len(template)


def test_pulls_of_one_model_share_its_transfer(hub: HubServer, server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", "llama", seed=11)
    hub.add("mlx-community/Shared", model)
    hold = threading.Event()
    hub.fail(WEIGHTS, hold=hold)
    results: list[list[dict[str, Any]]] = []
    threads = [
        threading.Thread(target=lambda: results.append(pull(server, "mlx-community/Shared")))
        for _ in range(3)
    ]
    with server.stream("/api/pull", model="mlx-community/Shared") as events:
        next(e for e in events if e.get("completed", 0) > 100_000 and "safetensors" in e["status"])
        for thread in threads:
            thread.start()
        # The first one goes away; the others keep the transfer.
        waiting = {r.path for r in hub.requests("/resolve/")}
        assert any("safetensors" in path for path in waiting)
    hold.set()
    for thread in threads:
        thread.join(60)
    assert [r[-1] for r in results] == [{"status": "success"}] * 3
    # All of it once; a part twice only if the first client was gone before another one had come.
    assert hub.body_bytes() <= 2 * (model / "model.safetensors").stat().st_size
    assert answer(server, "mlx-community/Shared")


def test_run_pulls_what_is_missing(hub: HubServer, server: Server, tiny: Path) -> None:
    hub.add("mlx-community/Missing", tiny)
    ran = server.cli("run", "mlx-community/Missing", "Hello")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert lines[0] == "pulling manifest" and lines[-1] == "success"
    assert lines.count("pulling model.safetensors:") == 1
    created = server.cli("create", "derived", "-f", str(_modelfile(tiny, "mlx-community/Other")))
    assert created.returncode == 1 and "there is no model" in created.stderr
    assert server.cli("pull", "--insecure", "mlx-community/Missing").returncode == 1


def _modelfile(directory: Path, base: str) -> Path:
    file = directory.parent / "Modelfile"
    file.write_text(f"FROM {base}\nSYSTEM x\n")
    return file


def test_a_file_of_the_cache_is_not_fetched(hub: HubServer, tiny: Path, tmp_path: Path) -> None:
    """What the hub's own tools downloaded is linked; what is damaged there is fetched; rm leaves the cache alone."""
    hub.add("mlx-community/Cached", tiny)
    settings = environment(hub, tmp_path)
    download = "from huggingface_hub import snapshot_download as d; d('mlx-community/Cached')"
    subprocess.run(
        [sys.executable, "-c", download], env={**os.environ, **settings}, check=True, capture_output=True
    )
    cached = tmp_path / "hf" / "hub" / "models--mlx-community--Cached" / "blobs"
    digest = sha256((tiny / "model.safetensors").read_bytes())
    assert (cached / digest).is_file()
    hub.reset()
    with Server(**settings) as server:
        assert pull(server, "mlx-community/Cached")[-1] == {"status": "success"}
        assert hub.body_bytes(".") == 0
        assert answer(server, "mlx-community/Cached")
        assert blob(server, digest).stat().st_ino == (cached / digest).stat().st_ino or _clones(tmp_path)
        assert server.cli("rm", "mlx-community/Cached").returncode == 0
        assert not blob(server, digest).exists() and (cached / digest).is_file()

        damaged = bytearray((cached / digest).read_bytes())
        damaged[-1] ^= 1
        (cached / digest).write_bytes(damaged)
        assert pull(server, "mlx-community/Cached")[-1] == {"status": "success"}
        assert hub.body_bytes() == len(damaged)
        assert answer(server, "mlx-community/Cached")
        server.cli("rm", "mlx-community/Cached")

        # Without the hub the cache is all there is, and it is damaged.
        settings["HF_HUB_OFFLINE"] = "1"
    with Server(**settings) as server:
        error = pull(server, "mlx-community/Cached")[-1]["error"]
        assert "HF_HUB_OFFLINE is set" in error and "model.safetensors" in error and "damaged" in error
        (cached / digest).write_bytes((tiny / "model.safetensors").read_bytes())
        events = pull(server, "mlx-community/Cached")
        assert events[-1] == {"status": "success"}, events
        assert answer(server, "mlx-community/Cached")
        assert "HF_HUB_OFFLINE is set" in pull(server, "mlx-community/Elsewhere")[-1]["error"]


def _clones(directory: Path) -> bool:
    """Whether this file system makes clones, which have an inode of their own."""
    (directory / "one").write_bytes(b"x")
    return (
        subprocess.run(
            ["cp", "--reflink=always", "one", "two"], cwd=directory, capture_output=True
        ).returncode
        == 0
    )


def test_the_token_stays_with_the_hub(hub: HubServer, tiny: Path, tmp_path: Path) -> None:
    hub.add("mlx-community/Private", tiny, private=True)
    hub.add("mlx-community/Gated", {**read(tiny), "extra.json": b"{}"}, gated={"alice"})
    hub.add("mlx-community/Closed", tiny, gated=set())
    settings = {**environment(hub, tmp_path), "HF_TOKEN": TOKEN, "OLLAMA_DEBUG": "2"}
    with Server(**settings) as server:
        for name in ("mlx-community/Private", "mlx-community/Gated"):
            assert pull(server, name)[-1] == {"status": "success"}
        error = pull(server, "mlx-community/Closed")[-1]["error"]
        assert f"visit {hub.url}/mlx-community/Closed and ask for it there" in error
        assert answer(server, "mlx-community/Private")
        assert TOKEN not in server.log
        for runner in server.runner_processes():
            if "mlx" in runner.cmdline():
                assert TOKEN not in runner.environ().values()
    hosts = {r.host for r in hub.log if r.authorization}
    assert hosts == {hub.url.removeprefix("http://")}
    assert {r.host for r in hub.requests(WEIGHTS)} == {hub.cdn_url.removeprefix("http://")}


def test_quantizing_while_importing(hub: HubServer, server: Server, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", "llama", seed=51)
    repository = hub.add("Qwen/Full", model)
    pulled = server.cli("pull", "--quantize", "4bit", "Qwen/Full")
    assert pulled.returncode == 0, pulled.stderr
    shown = server.post("/api/show", model="hf.co/Qwen/Full")
    assert shown["details"]["quantization_level"] == "4-bit"
    assert answer(server, "Qwen/Full")
    # The original went when it was not needed any more, and does not come again before it changes.
    assert not blob(server, sha256((model / "model.safetensors").read_bytes())).exists()
    hub.reset()
    assert pull(server, "hf.co/Qwen/Full")[-1] == {"status": "success"}
    assert not hub.requests("/resolve/")
    repository.commit(read(make_model(tmp_path / "n", "llama", seed=52)))
    assert pull(server, "hf.co/Qwen/Full")[-1] == {"status": "success"}
    assert server.post("/api/show", model="hf.co/Qwen/Full")["details"]["quantization_level"] == "4-bit"
    for name, text in {
        "hf.co/Qwen/Full": "unknown quantization",
        "mlx-community/None": "unknown quantization",
    }.items():
        refused = server.cli("pull", "--quantize", "fast", name)
        assert refused.returncode == 1 and text in refused.stderr
    assert "quantize is for models of Hugging Face" in server.cli("pull", "-q", "4bit", "plain").stderr


def test_ggufs(hub: HubServer, server: Server, tmp_path: Path) -> None:
    files = {}
    for seed, quantization in enumerate(("F16", "F32")):
        make_gguf(tmp_path / "m.gguf", "llama", quantization, seed=seed)
        files[f"Tiny-{quantization}.gguf"] = (tmp_path / "m.gguf").read_bytes()
    hub.add("bartowski/Tiny-GGUF", {**files, "README.md": b"# Tiny"}, tags=("gguf",), card={"license": "mit"})
    assert pull(server, "hf.co/bartowski/Tiny-GGUF:f32")[-1] == {"status": "success"}
    assert [r.path.rsplit("/", 1)[1] for r in hub.requests("/resolve/")] == ["Tiny-F32.gguf"]
    shown = server.post("/api/show", model="hf.co/bartowski/Tiny-GGUF:F32")
    assert shown["details"]["format"] == "gguf" and shown["license"] == "License: mit"
    assert answer(server, "hf.co/bartowski/Tiny-GGUF:F32")
    # Without a quantization the best compromise is taken.
    assert pull(server, "hf.co/bartowski/Tiny-GGUF")[-1] == {"status": "success"}
    assert [r.path.rsplit("/", 1)[1] for r in hub.requests("/resolve/")][-1] == "Tiny-F16.gguf"
    error = pull(server, "hf.co/bartowski/Tiny-GGUF:Q2_K")[-1]["error"]
    assert 'neither a revision nor a quantization "Q2_K"; its quantizations are F16, F32' in error


def test_a_gguf_model_that_sees(hub: HubServer, server: Server, tmp_path: Path) -> None:
    """Its projector comes with it."""
    files = {
        "Seer-Q8_0.gguf": make_gguf(tmp_path / "m.gguf", "llama", "Q8_0", endless=True).read_bytes(),
        "mmproj-Seer-F32.gguf": make_projector(tmp_path / "p.gguf").read_bytes(),
    }
    hub.add("ggml-org/Seer-GGUF", files, tags=("gguf",))
    name = "hf.co/ggml-org/Seer-GGUF:Q8_0"
    assert pull(server, name)[-1] == {"status": "success"}
    assert "vision" in server.post("/api/show", model=name)["capabilities"]

    def see(seed: int) -> str:
        image = base64.b64encode(picture(seed)).decode()
        message = {"role": "user", "content": "What is this?", "images": [image]}
        options = {"temperature": 0, "num_predict": 8}
        return server.post("/api/chat", model=name, messages=[message], options=options)["message"]["content"]

    assert see(1) == see(1) != see(2)


def test_a_tokenizer_of_sentencepiece_alone(hub: HubServer, server: Server, tmp_path: Path) -> None:
    """No tokenizer.json, and the chat template in a file of its own."""
    import sentencepiece

    model = make_model(tmp_path / "m", "llama", vocab_size=320, eos_token_id=2)
    (model / "tokenizer.json").unlink()
    text = tmp_path / "text"
    text.write_text(
        "\n".join(f"the quick brown fox number {i} jumps over {i * i} lazy dogs" for i in range(200))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(model / "tokenizer"), vocab_size=320, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (model / "tokenizer.vocab").unlink()
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"})
    )
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    hub.add("mlx-community/Sentences", model)
    assert pull(server, "mlx-community/Sentences")[-1] == {"status": "success"}
    message = {"role": "user", "content": "the quick brown fox"}
    said = server.post(
        "/api/chat", model="mlx-community/Sentences", messages=[message], options={"num_predict": 4}
    )
    assert said["prompt_eval_count"] > 2 and said["eval_count"] > 0
