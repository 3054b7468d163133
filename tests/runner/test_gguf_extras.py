"""What is loaded beside a GGUF model: adapters and draft models; and models that rank."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.gguf.loading import load_model
from ollmlx.runner.gguf.vectors import embed, rerank
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.gguf_models import InProcess, own_server
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_ggufs import HEAD, HEADS, WIDTH, make_bert_gguf, make_demo_gguf, make_gguf

REQUEST = {"prompt": pb.Prompt(text="Once"), "options": pb.Options(num_predict=30, temperature=0)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("model") / "model.gguf", "llama", endless=True)


def make_adapter(path: Path) -> Path:
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for layer in range(2):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.lora_a", random.standard_normal((4, WIDTH)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", random.standard_normal((HEADS * HEAD, 4)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_changes_the_text(model: Path, tmp_path: Path) -> None:
    adapter = pb.Adapter(name="a", path=str(make_adapter(tmp_path / "adapter.gguf")))
    with InProcess(model) as plain:
        without = plain.run(**REQUEST).content
    with InProcess(model, adapters=[adapter]) as adapted:
        assert adapted.run(**REQUEST).content != without
        assert adapted.run(**REQUEST, adapter=adapter).finished
        with pytest.raises(AssertionError, match="was not loaded with the model"):
            adapted.run(**REQUEST, adapter=pb.Adapter(name="b"))


def test_a_draft_model_changes_nothing_but_the_speed(model: Path, tmp_path: Path) -> None:
    draft = make_gguf(tmp_path / "draft.gguf", "llama", endless=True, layers=1)
    with InProcess(model) as plain:
        alone = plain.run(**REQUEST)
    with InProcess(model, draft_model_path=str(draft), draft_num_predict=4) as drafted:
        answer = drafted.run(**REQUEST)
    assert answer.content == alone.content
    assert answer.finished.usage.completion_tokens == 30


def test_kv_cache_types(model: Path, tmp_path: Path) -> None:
    demo = make_demo_gguf(tmp_path / "demo.gguf")
    sizes = []
    for kind in ("f16", "q8_0", "q4_0"):
        with InProcess(demo, kv_cache_type=kind) as loaded:
            assert loaded.run(**REQUEST).content
            sizes.append(loaded.model.info.kv_bytes_per_token)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 * 2 * 64 * 2
    with pytest.raises(RunnerError, match="does not divide"):
        # Heads of 16 numbers are half a block.
        load_model(pb.LoadRequest(model_path=str(model), num_ctx=512, kv_cache_type="q8_0"))
    for fields, named in (
        ({"kv_cache_type": "q3"}, "q3"),
        ({"kv_cache_type": "q4_0", "flash_attention": False}, "flash attention"),
        ({"cache_dir": "/tmp"}, "cache_dir"),
        ({"device": "gpu"}, "GPU"),
    ):
        with pytest.raises(RunnerError, match=named):
            load_model(pb.LoadRequest(model_path=str(model), num_ctx=512, **fields))


@pytest.mark.parametrize("pooling", [gguf.PoolingType.MEAN, gguf.PoolingType.CLS])
def test_encoders_pool_as_their_file_asks(tmp_path: Path, pooling: gguf.PoolingType) -> None:
    path, texts = make_bert_gguf(tmp_path / "bert.gguf", pooling), ["a cat", "the quick brown fox", "zebra"]
    with own_server(path, embedding=True, embd_normalize=2) as server:
        expected = [
            e["embedding"] for e in server.post("/v1/embeddings", json={"input": texts}).json()["data"]
        ]
    with InProcess(path, num_ctx=0) as encoder:
        assert list(encoder.model.info.capabilities) == ["embedding"]
        response = embed(encoder.model, pb.EmbedRequest(inputs=texts, normalize=True))
        cut = embed(encoder.model, pb.EmbedRequest(inputs=["x " * 2000], truncate=True))
    np.testing.assert_allclose([list(e.values) for e in response.embeddings], expected, atol=1e-3)
    assert cut.prompt_tokens == 512


def test_a_ranker_ranks(tmp_path: Path) -> None:
    path = make_bert_gguf(tmp_path / "ranker.gguf", gguf.PoolingType.RANK)
    documents = ["a cat", "the quick brown fox", "zebra " * 300]
    with InProcess(path, num_ctx=0) as ranker:
        assert list(ranker.model.info.capabilities) == ["rerank"]
        request = pb.RerankRequest(query="cats", documents=documents, truncate=True)
        response = rerank(ranker.model, request)
        raw = rerank(ranker.model, pb.RerankRequest(query="cats", documents=documents[:2], raw_scores=True))
        with pytest.raises(RunnerError, match="document 2"):
            rerank(ranker.model, pb.RerankRequest(query="cats", documents=documents))
        with pytest.raises(RunnerError, match="no embeddings"):
            embed(ranker.model, pb.EmbedRequest(inputs=["a"]))
    assert len(response.scores) == 3 and all(0 <= s <= 1 for s in response.scores)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.array(raw.scores))), response.scores[:2], atol=1e-5)
    assert response.scores[0] != response.scores[1]


def test_only_rankers_rank(model: Path) -> None:
    with InProcess(model) as plain, pytest.raises(RunnerError, match="does not support reranking"):
        rerank(plain.model, pb.RerankRequest(query="q", documents=["d"]))


def test_long_inputs_are_cut_or_refused(model: Path) -> None:
    with InProcess(model, num_ctx=64) as small:
        assert embed(small.model, pb.EmbedRequest(inputs=["x" * 500], truncate=True)).prompt_tokens == 64
        with pytest.raises(RunnerError, match="exceeds the context length"):
            embed(small.model, pb.EmbedRequest(inputs=["x" * 500]))
        with pytest.raises(RunnerError, match="nothing to embed"):
            embed(small.model, pb.EmbedRequest(inputs=[""]))
        with pytest.raises(RunnerError, match="dimensions"):
            embed(small.model, pb.EmbedRequest(inputs=["x"], dimensions=65))
        assert len(embed(small.model, pb.EmbedRequest(inputs=["x"], dimensions=8)).embeddings[0].values) == 8


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    for content, named in (
        (b"GGML", "does not begin"),
        (b"GGUF\x03\0\0\0", "requires a buffer"),
        (b"GGUF\x09\0\0\0" + bytes(16), "version 9"),
    ):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(RunnerError, match=named):
            load_model(pb.LoadRequest(model_path=str(tmp_path / "bad.gguf")))


def test_an_architecture_that_nobody_knows_says_so(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "odd.gguf", "llama", metadata={"general.architecture": "nonsense"})
    with pytest.raises(RunnerError, match="nonsense"):
        load_model(pb.LoadRequest(model_path=str(path), model_name="odd"))


def test_caches_stay_when_they_are_to_be_trimmed(model: Path) -> None:
    with RunnerProcess(engine="gguf") as runner:
        runner.load(model, num_ctx=512, num_parallel=2, kv_cache_bytes=1 << 24)
        answer = runner.stub.Trim(pb.TrimRequest(kv_cache_bytes=1))
        status = runner.stub.Status(pb.StatusRequest())
    slots = 2 * 512 * 2 * 2 * 2 * HEAD * 2
    assert status.memory.kv_cache_bytes == slots
    assert slots <= answer.kv_cache_bytes <= 1 << 24
