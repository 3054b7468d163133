"""Models that see: rows with images say what mlx-vlm says by itself, whoever is in the batch with them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.tiny_vision_models import FAMILIES, make_vision_model, picture
from tests.support.worker import InProcess, log_towers

pytest.importorskip("mlx_vlm", reason='needs the extra: pip install "ollmlx[vision]"')

GREEDY = pb.Options(num_predict=24, temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_vision_model(tmp_path_factory.mktemp("vision") / family, family, endless=True)
        return made[family]

    return make


def question(text: str, *pictures: bytes) -> dict[str, object]:
    message = pb.Message(role="user", content=text, images=[pb.Image(data=p) for p in pictures])
    return {"chat": pb.Chat(messages=[message]), "options": GREEDY, "return_context": True}


def mlx_vlm_says(path: Path, prompts: list[tuple[str, list[bytes]]], tokens: int) -> list[list[int]]:
    """What mlx-vlm's own generator answers to rendered prompts, one after another."""
    import mlx.core as mx
    import numpy as np
    from mlx_vlm import utils
    from mlx_vlm.generate.ar import generate_step
    from PIL import Image

    loaded = utils.load_model(path)
    processor = utils.load_processor(path, trust_remote_code=False)
    answers = []
    for text, images in prompts:
        if images:
            made = dict(
                processor(text=[text], images=[Image.open(io.BytesIO(i)).convert("RGB") for i in images])
            )
        else:
            made = {"input_ids": processor.tokenizer([text]).input_ids}
        made = {
            name: mx.array(value) if isinstance(value, np.ndarray) else value for name, value in made.items()
        }
        ids = mx.array(np.array(made.pop("input_ids")))
        made.pop("attention_mask", None)
        pixels = made.pop("pixel_values", None)
        for name in ("_position_ids", "_rope_deltas"):
            if hasattr(loaded.language_model, name):
                setattr(loaded.language_model, name, None)
        steps = generate_step(
            ids, loaded, pixels, mx.ones(ids.shape, mx.int32), max_tokens=tokens, temperature=0.0, **made
        )
        answers.append([int(token) for token, _ in steps][:tokens])
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_mlx_vlm(
    family: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, wide = picture(1), picture(2), picture(3, (150, 40), "JPEG")
    requests = [
        question("What is this?", a),
        question("What is this?", b),
        question("And these two?", wide, a),
        question("No picture at all"),
    ]
    with InProcess(model(family)) as worker:
        _, _, two = worker._preparation.encode_chat(requests[2]["chat"])
        rendered = [worker.tokenize(r) for r in requests]
        together = worker.run_together(requests)
        alone = [worker.run(**r) for r in requests]
        # As a conversation that begins otherwise: no cache of a prompt serves, what is known of the images does.
        worker.worker.call(worker.worker.scheduler._prefixes.clear).result(10)
        towers = log_towers(worker, monkeypatch)
        again = [worker.run(**r) for r in requests]
        assert not towers, "features of images are kept"
    prompts = [
        (r, [i.data for i in q["chat"].messages[0].images]) for r, q in zip(rendered, requests, strict=True)
    ]
    expected = mlx_vlm_says(model(family), prompts, GREEDY.num_predict)
    answers = [list(t.finished.context)[-GREEDY.num_predict :] for t in together]
    assert answers == expected
    assert [t.content for t in together] == [t.content for t in alone]
    assert [t.content for t in again] == [t.content for t in alone]
    assert len(two.units) >= 2, "the tower need not compute both at once"
    assert len({tuple(e) for e in expected}) == len(expected), "the answers must depend on the images"
