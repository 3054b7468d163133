"""Traps of MLX and mlx-lm, and complaints about other servers, that no other test holds; docs/engine.md lists all.

Each fails with the obvious code.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import mlx.core as mx
import pytest

from ollmlx.runner.mlx import mlxlm
from ollmlx.runner.mlx.mlxlm import model as mlxlm_model
from ollmlx.runner.mlx.prefix_cache import Prefix, PrefixCache
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import RunnerProcess
from tests.support.server import REPOSITORY
from tests.support.tiny_models import MORE_ARCHITECTURES, make_model
from tests.support.worker import InProcess


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("traps") / "m", "llama", endless=True)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[InProcess]:
    with InProcess(path) as model:
        yield model


def request(text: str, tokens: int = 20, **fields: object) -> dict[str, object]:
    options = pb.Options(num_predict=tokens, temperature=0.8, seed=1)
    return {"prompt": pb.Prompt(text=text), "options": options, **fields}


def test_one_thread_computes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams belong to threads: what one has begun no other may go on with."""
    seen = set()
    for name in ("eval", "async_eval", "save_safetensors", "load"):
        function = getattr(mx, name)

        def recording(*arguments: object, function: object = function, **named: object) -> object:
            seen.add(threading.current_thread().name)
            return function(*arguments, **named)

        monkeypatch.setattr(mx, name, recording)
    files = {"cache_dir": str(tmp_path / "files"), "cache_bytes": 1 << 30, "model_digest": "m"}
    for _ in range(2):
        with InProcess(path, **files) as model:
            first = model.run(**request("x" * 300, logprobs=True, top_logprobs=3))
            model.run_together([request("first"), request("y" * 300)])
            model.worker.call(model.worker.scheduler.save_prefixes, 30).result(60)
    assert first.finished.usage.cached_prompt_tokens > 256, "from the file"
    assert seen == {"mlx"}


def test_only_weights_are_wired(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is recommended, beside caches that come and go, panics macOS."""
    limits: list[int] = []
    config = mlxlm.load_config(path)
    weights = mlxlm.load_weights(path, lambda done, total: None)
    loaded = mlxlm.LoadedModel(weights, mlxlm.load_tokenizer(path, config), config)
    traits = mlxlm.warm_up(loaded)
    for recommended, wired in ((1 << 40, mlxlm.weight_bytes(weights)), (1000, 1000)):
        info = {"max_recommended_working_set_size": recommended}
        monkeypatch.setattr(mlxlm_model.mx, "device_info", lambda info=info: info)
        monkeypatch.setattr(mlxlm_model.mx, "set_wired_limit", limits.append)
        mlxlm.make_batch(loaded, traits)
        assert limits[-1] == wired
    assert max(limits) <= mlxlm.weight_bytes(weights)


def test_a_stored_state_does_not_keep_its_batch() -> None:
    """A row of an evaluated array is a view: it holds all of it."""
    from mlx_lm.models import cache

    from ollmlx.runner.mlx.mlxlm import caches

    batch = cache.ArraysCache(1)
    batch[0] = mx.zeros((64, 1 << 16))
    mx.eval(batch[0])
    row = batch.extract(3)
    caches.settle([row])
    before = mx.get_active_memory()
    batch[0] = None
    assert before - mx.get_active_memory() >= 64 << 18, "all of the batch is gone"
    assert row.nbytes == 1 << 18


def test_live_buffers_are_few() -> None:
    """Metal allows 499,000 of them, whatever their size: thousands of short prefixes must not add up to that."""

    class Small:
        def cuttable(self, caches: list[int]) -> bool:
            return True

        def cut(self, caches: list[int], length: int) -> list[int]:
            return caches

        def nbytes(self, caches: list[int]) -> int:
            return 1

    cache = PrefixCache(1 << 30, Small())
    for i in range(2000):
        cache.add("", Prefix([i] * 20, [1]))
    assert len(cache) <= 512
    assert cache.find("", [1999] * 21) is not None
    assert cache.find("", [0] * 21) is None


@pytest.mark.parametrize(
    ("fields", "named"), [({"kv_cache_type": "q8_0"}, "q8_0"), ({"draft_model_path": "/x"}, "draft models")]
)
def test_what_would_be_accepted_and_not_applied_is_refused(
    path: Path, fields: dict[str, str], named: str
) -> None:
    with RunnerProcess() as process:
        with pytest.raises(grpc.RpcError, match=named) as refused:
            process.load(path, **fields)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert process.load(path).architecture == "llama", "the runner is as it was"


def test_a_loop_that_fails_ends_the_process(path: Path) -> None:
    """Whoever answers health checks and never generates again is worse than dead."""
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.support.worker import InProcess
        from tests.runner.test_traps import request
        model = InProcess(Path(sys.argv[1]))
        def fail():
            raise RuntimeError("injected")
        model.worker.scheduler.admit = fail
        model.run(**request("x"))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.returncode == 70, done.stderr


def test_a_long_prompt_leaves_the_others_their_tokens(model: InProcess) -> None:
    events: list[pb.Event] = []
    emit = model.emit

    def recording(step: pb.StepEvents) -> None:
        events.extend(step.events)
        emit(step)

    model.emit = recording
    try:
        talking = model.start(**request("talk", tokens=400))
        while not any(e.HasField("delta") for e in list(events)):
            model._inboxes[talking].get(timeout=60)
        long = model.start(**request("long " * 300, tokens=1))
        model.result(long)
        model.worker.call(model.worker.scheduler.cancel, model, talking).result(60)
    finally:
        model.emit = emit
    chunks = [i for i, e in enumerate(events) if e.request_id == long and e.HasField("prefill")]
    assert len(chunks) > 4, "it is computed in pieces"
    done = [events[i].prefill.tokens_done for i in chunks]
    assert max(b - a for a, b in itertools.pairwise(done)) <= 512
    meanwhile = [e for e in events[chunks[0] : chunks[-1]] if e.request_id == talking]
    # What steps say may leave together.
    assert sum(e.delta.tokens for e in meanwhile) >= len(chunks) - 4, "a token for each of them"


def test_nothing_is_written_while_there_is_something_to_do(path: Path, tmp_path: Path) -> None:
    """Each turn replaces the one before: a disk is not worn by what is written in vain."""
    files = {"cache_dir": str(tmp_path / "files"), "cache_bytes": 1 << 30, "model_digest": "m"}
    with InProcess(path, **files) as model:
        context: list[int] = []
        for _ in range(3):
            turn = pb.Prompt(text="turn " * 60, context=context)
            context = list(
                model.run(**request("") | {"prompt": turn, "return_context": True}).finished.context
            )
        assert not list(tmp_path.glob("files/*/*"))
        model.worker.call(model.worker.scheduler.save_prefixes, 30).result(60)
    assert len(list(tmp_path.glob("files/*/*"))) == 1, "the last one, which holds the others"


def test_the_list_names_tests_that_exist() -> None:
    lines = [x for x in (REPOSITORY / "docs" / "engine.md").read_text().splitlines() if x.startswith("| ")]
    named = [name for x in lines for name in re.findall(r"`([^`]+)`", x.rsplit("|", 2)[1])]
    file = None
    found = 0
    for name in named:
        path, _, test = name.partition("::")
        if path.endswith(".py"):
            file = REPOSITORY / "tests" / path
            assert file.is_file(), name
        elif name.startswith("Test"):
            assert any(
                f"func {name}(" in f.read_text() for f in (REPOSITORY / "go" / "internal").glob("*/*_test.go")
            ), name
        elif name.startswith("test_"):
            test = name
        if test:
            assert f"def {test}(" in file.read_text(), name
            found += 1
    assert found > 25


def test_no_model_writes_beyond_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose code does so whatever its configuration says, which ends in a crash, later and elsewhere."""
    small = {
        "dense_attention_every_n_layers": 2, "ff_intermediate_size": 128, "gegelu_limit": 20.0,
        "layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    monkeypatch.setitem(MORE_ARCHITECTURES, "phi3small", small)
    path = make_model(tmp_path / "small", "phi3small")
    with pytest.raises(ValueError, match="vocab_size of 259 is too small"):
        mlxlm.load_weights(path, lambda done, total: None)
