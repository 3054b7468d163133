"""Embed calls to a real runner: the real all-MiniLM-L6-v2, tiny models made for embeddings, and models for text."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.embedding_models import minilm, reference, tiny
from tests.support.runner_process import RunnerProcess
from tests.support.tiny_models import make_adapter, make_model

MINILM = reference()["minilm"]
TOO_LONG = "word " * 300


@pytest.fixture(scope="module")
def minilm_runner() -> Iterator[RunnerProcess]:
    model = minilm()
    with RunnerProcess() as process:
        process.info = process.load(model, model_name="all-minilm")
        yield process


def embed(runner: RunnerProcess, inputs: list[str], **fields: object) -> np.ndarray:
    response = runner.stub.Embed(
        pb.EmbedRequest(inputs=inputs, **{"truncate": True, "normalize": True} | fields)
    )
    return np.array([e.values for e in response.embeddings])


def refusal(runner: RunnerProcess, inputs: list[str], **fields: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as err:
        runner.stub.Embed(pb.EmbedRequest(inputs=inputs, **fields))
    return err.value.code(), err.value.details()


# ---- the real model


def test_vectors_of_the_real_model_are_those_of_pytorch(minilm_runner: RunnerProcess) -> None:
    request = pb.EmbedRequest(inputs=MINILM["texts"], truncate=True, normalize=True)
    response = minilm_runner.stub.Embed(request)
    got = np.array([e.values for e in response.embeddings])
    np.testing.assert_allclose(got, MINILM["vectors"], atol=2e-5)
    assert response.prompt_tokens == sum(MINILM["tokens"])


def test_alone_and_together_are_the_same_in_any_order(minilm_runner: RunnerProcess) -> None:
    texts = MINILM["texts"][:6]
    together = embed(minilm_runner, texts)
    alone = np.concatenate([embed(minilm_runner, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(embed(minilm_runner, texts[::-1])[::-1], alone, atol=1e-5)


def test_like_sentences_are_nearer_than_unlike_ones(minilm_runner: RunnerProcess) -> None:
    cat, kitten, stocks = embed(minilm_runner, MINILM["texts"][:3])
    assert cat @ kitten > 0.5 > 0.2 > cat @ stocks


def test_what_a_load_says_of_a_model_made_for_embeddings(minilm_runner: RunnerProcess) -> None:
    info = minilm_runner.info
    assert info.architecture == "bert"
    assert list(info.capabilities) == ["embedding"]
    # The model has 512 positions, but its sentence_bert_config.json asks for less.
    assert (info.max_context_length, info.context_length) == (256, 256)
    assert info.parameter_count == 22_565_376
    assert info.kv_bytes_per_token == 0


@pytest.mark.parametrize(
    ("wish", "fields"),
    [
        ("generate", {"prompt": pb.Prompt(text="Hi")}),
        ("chat", {"chat": pb.Chat(messages=[pb.Message(role="user", content="Hi")])}),
    ],
)
def test_text_is_refused_by_models_made_for_embeddings(
    minilm_runner: RunnerProcess, wish: str, fields: dict[str, object]
) -> None:
    with minilm_runner.session() as session:
        failed = session.run(**fields).failed
    assert failed.code == grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert failed.message == f'"all-minilm" does not support {wish}'


def test_too_long_inputs_are_cut_or_refused(minilm_runner: RunnerProcess) -> None:
    request = pb.EmbedRequest(inputs=[TOO_LONG], truncate=True, normalize=True)
    assert minilm_runner.stub.Embed(request).prompt_tokens == 256
    request.num_ctx = 10
    assert minilm_runner.stub.Embed(request).prompt_tokens == 10
    # Of ten tokens two are special: the cut keeps them.
    np.testing.assert_allclose(
        embed(minilm_runner, [TOO_LONG], num_ctx=10), embed(minilm_runner, ["word " * 8]), atol=1e-5
    )
    assert minilm_runner.stub.Embed(pb.EmbedRequest(inputs=["word " * 254])).prompt_tokens == 256
    too_long = (grpc.StatusCode.INVALID_ARGUMENT, "the input length exceeds the context length")
    assert refusal(minilm_runner, ["fine", "word " * 255]) == too_long
    assert refusal(minilm_runner, ["word " * 20], num_ctx=10) == too_long
    code, message = refusal(minilm_runner, ["a"], truncate=True, num_ctx=2)
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input after truncation exceeds maximum context length",
    )


def test_dimensions_are_cut_and_scaled_again(minilm_runner: RunnerProcess) -> None:
    full = embed(minilm_runner, ["a cat"])[0]
    cut = embed(minilm_runner, ["a cat"], dimensions=32)[0]
    np.testing.assert_allclose(cut, full[:32] / np.linalg.norm(full[:32]), atol=1e-6)
    code, message = refusal(minilm_runner, ["a cat"], dimensions=385)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message == "dimensions must not be larger than the 384 of this model, got 385"


def test_no_inputs_give_no_vectors(minilm_runner: RunnerProcess) -> None:
    assert minilm_runner.stub.Embed(pb.EmbedRequest()) == pb.EmbedResponse()


def test_tokens_of_the_real_model_go_there_and_back(minilm_runner: RunnerProcess) -> None:
    tokens = minilm_runner.stub.Tokenize(pb.TokenizeRequest(prompt=pb.Prompt(text="Hello world"))).tokens
    assert list(tokens) == [101, 7592, 2088, 102]
    text = minilm_runner.stub.Detokenize(pb.DetokenizeRequest(tokens=tokens)).text
    assert "hello world" in text


def test_many_calls_at_once_get_their_own_vectors(minilm_runner: RunnerProcess) -> None:
    texts = [f"text number {i} " + "long " * (i * 7 % 30) for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda text: embed(minilm_runner, [text, MINILM["texts"][0]]), texts))
    want = embed(minilm_runner, texts)
    np.testing.assert_allclose(np.array(got)[:, 0], want, atol=1e-5)
    np.testing.assert_allclose(np.array(got)[:, 1], [MINILM["vectors"][0]] * len(texts), atol=2e-5)


def test_a_call_that_is_cancelled_stops_the_work(minilm_runner: RunnerProcess) -> None:
    call = minilm_runner.stub.Embed.future(pb.EmbedRequest(inputs=[TOO_LONG] * 2000, truncate=True))
    wait_for(lambda: minilm_runner.stub.Status(pb.StatusRequest()).running == 1)
    call.cancel()
    wait_for(lambda: minilm_runner.stub.Status(pb.StatusRequest()).running == 0, seconds=10)
    np.testing.assert_allclose(embed(minilm_runner, MINILM["texts"][:1])[0], MINILM["vectors"][0], atol=2e-5)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# ---- models for text, and tiny ones made for embeddings


@pytest.fixture(scope="module")
def text_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    model = make_model(tmp_path_factory.mktemp("endless"), "llama", endless=True)
    with RunnerProcess() as process:
        process.load(model, num_ctx=2048)
        yield process


def test_models_for_text_embed_too(text_runner: RunnerProcess) -> None:
    texts = ["one text", "another one, which is longer", "x"]
    together = embed(text_runner, texts)
    assert together.shape == (3, 64), "the width of the hidden states, not of the vocabulary"
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embed(text_runner, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    raw = embed(text_runner, texts, normalize=False)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1, atol=1e-2)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), together, atol=1e-5)


def test_an_input_without_tokens_is_refused_where_nothing_is_added(text_runner: RunnerProcess) -> None:
    code, message = refusal(text_runner, ["fine", ""])
    assert (code, message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "input 1 has no tokens: there is nothing to embed",
    )


def test_a_stream_goes_on_while_a_long_list_is_embedded(text_runner: RunnerProcess) -> None:
    """At least one token of the stream for every two pieces: the list does not get the thread to itself."""
    with text_runner.session() as session:
        stream = session.start(prompt=pb.Prompt(text="Go"), options=pb.Options(num_predict=1900))
        session.next_delta(stream)
        before = text_runner.stub.Status(pb.StatusRequest()).steps
        # Nothing is joined to a text of this length: a piece of 256 tokens is an eighth of it.
        texts = [f"{i} " + "x" * 1900 for i in range(12)]
        vectors = embed(text_runner, texts)
        steps = text_runner.stub.Status(pb.StatusRequest()).steps - before
        session.cancel(stream)
        session.result(stream)
    assert len(vectors) == 12
    pieces = 12 * 1900 // 256
    assert steps >= pieces / 2, f"{steps} steps of the stream during about {pieces} pieces"


def test_text_is_the_same_beside_embeddings(text_runner: RunnerProcess) -> None:
    ask = {"prompt": pb.Prompt(text="Once"), "options": pb.Options(num_predict=60, temperature=0)}
    with text_runner.session() as session:
        quiet = session.run(**ask).content
        busy = session.start(**ask)
        embed(text_runner, ["a", "bc" * 40, "d" * 300])
        assert session.result(busy).content == quiet


def test_a_decoder_with_sentence_transformers_files_is_made_for_embeddings(tmp_path: Path) -> None:
    with RunnerProcess() as runner:
        info = runner.load(tiny(tmp_path / "m", "qwen3", pooling="lasttoken", normalize=True), model_name="q")
        assert list(info.capabilities) == ["embedding"]
        # Its own module scales, though the request does not ask for it.
        assert np.linalg.norm(embed(runner, ["some text"], normalize=False)) == pytest.approx(1, abs=1e-5)
        with runner.session() as session:
            assert session.run(prompt=pb.Prompt(text="x")).failed.message == '"q" does not support generate'


def test_inputs_are_made_lower_case_where_the_files_ask_for_it(tmp_path: Path) -> None:
    with RunnerProcess() as runner:
        runner.load(tiny(tmp_path / "m", "bert", pooling="mean_tokens", lower_case=True))
        upper, lower = embed(runner, ["ABC", "abc"])
        np.testing.assert_array_equal(upper, lower)


def test_vectors_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    import mlx.core as mx

    path = tiny(tmp_path / "m", "bert")
    weights = mx.load(str(path / "model.safetensors"))
    table = np.array(weights["embeddings.word_embeddings.weight"])
    table[ord("#") - ord("!")] = np.nan
    weights["embeddings.word_embeddings.weight"] = mx.array(table)
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    with RunnerProcess() as runner:
        runner.load(path)
        invalid = (grpc.StatusCode.INVALID_ARGUMENT, "embedding contains NaN or Inf values")
        assert refusal(runner, ["fine", "not # fine"]) == invalid
        # Beside such an input others come out as alone.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(refusal, runner, ["not # fine"]) for _ in range(4)]
            fine = [pool.submit(embed, runner, ["all fine"]) for _ in range(4)]
            assert {call.result() for call in calls} == {invalid}
            for vector in fine:
                np.testing.assert_allclose(vector.result(), embed(runner, ["all fine"]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deberta"}, "m cannot be loaded: Model type deberta not supported."),
        ({"hidden_size": 32}, "m cannot be loaded: Expected shape"),
        ({"hidden_act": "mish"}, "the activation 'mish' is not supported"),
    ],
)
def test_a_load_that_fails_says_why(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tiny(tmp_path / "m", "bert", pooling="mean_tokens")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with RunnerProcess() as runner, pytest.raises(grpc.RpcError) as err:
        runner.load(path, model_name="m")
    assert message in err.value.details()


def test_calls_before_a_load_are_refused() -> None:
    with RunnerProcess() as runner:
        assert refusal(runner, ["a"])[0] == grpc.StatusCode.FAILED_PRECONDITION


def test_a_shutdown_lets_embeddings_end_or_fails_them(minilm_runner: RunnerProcess) -> None:
    with RunnerProcess() as runner:
        runner.load(minilm())
        call = runner.stub.Embed.future(pb.EmbedRequest(inputs=[TOO_LONG] * 2000, truncate=True))
        wait_for(lambda: runner.stub.Status(pb.StatusRequest()).running == 1)
        runner.stub.Shutdown(pb.ShutdownRequest(drain_ns=50_000_000), timeout=20)
        with pytest.raises(grpc.RpcError) as err:
            call.result(timeout=20)
        assert err.value.code() == grpc.StatusCode.UNAVAILABLE


def test_embeddings_wear_the_adapter_they_ask_for_beside_a_stream_that_wears_another(tmp_path: Path) -> None:
    model = make_model(tmp_path / "base", "llama", endless=True)
    adapters = [
        pb.Adapter(name=name, path=str(make_adapter(tmp_path / name, model, seed=seed)))
        for seed, name in enumerate(("first", "second"), 1)
    ]
    with RunnerProcess() as runner:
        runner.load(model, num_ctx=1024)
        bare = embed(runner, ["some text"])
        worn = [embed(runner, ["some text"], adapter=adapter) for adapter in adapters]
        assert all(not np.allclose(a, b, atol=1e-3) for a, b in [(bare, worn[0]), (bare, worn[1]), worn])
        np.testing.assert_allclose(embed(runner, ["some text"]), bare, atol=1e-6)

        with runner.session() as session:
            ask = {"prompt": pb.Prompt(text="Go"), "options": pb.Options(num_predict=150, temperature=0)}
            quiet = session.run(adapter=adapters[0], **ask).content
            running = session.start(adapter=adapters[0], **ask)
            session.next_delta(running)
            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                calls = [pool.submit(embed, runner, ["some text"], adapter=a) for a in adapters]
                plain = pool.submit(embed, runner, ["some text"])
            for call, want in zip([*calls, plain], [*worn, bare], strict=True):
                np.testing.assert_allclose(call.result(), want, atol=1e-5)
            rest = session.result(running)
            assert rest.failed is None and quiet.endswith(rest.content)

        code, message = refusal(runner, ["x"], adapter=pb.Adapter(name="none", path=str(tmp_path / "none")))
        assert code == grpc.StatusCode.INVALID_ARGUMENT and "adapter cannot be used" in message
        np.testing.assert_allclose(embed(runner, ["some text"]), bare, atol=1e-6)
