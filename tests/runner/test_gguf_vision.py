"""Images to GGUF models: what the engine makes of them, next to llama.cpp's own server, and what it refuses."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ollmlx.runner.errors import RunnerError
from ollmlx.runner.gguf import media
from ollmlx.runner.gguf.engine import GGUFEngine
from ollmlx.runner.gguf.loading import load_model
from ollmlx.runner.gguf.metadata import read_metadata
from ollmlx.runner.gguf.projector import check
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.gguf_models import InProcess, own_server
from tests.support.runner_process import Answer
from tests.support.tiny_ggufs import make_gguf
from tests.support.tiny_projectors import IMAGE_TOKENS, PATCH, TOWER, make_projector
from tests.support.tiny_vision_models import picture

A, B = picture(1), picture(2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("seer")
    model = make_gguf(directory / "model.gguf", "llama", endless=True)
    return model, make_projector(directory / "mmproj.gguf")


@pytest.fixture(scope="module")
def seer(files: tuple[Path, Path]) -> Iterator[InProcess]:
    with InProcess(files[0], projector_path=str(files[1]), model_name="seer") as loaded:
        yield loaded


def user(text: str, *images: bytes) -> pb.Message:
    return pb.Message(role="user", content=text, images=[pb.Image(data=i) for i in images])


def chat(*messages: pb.Message, tokens: int = 16, **fields: Any) -> dict[str, Any]:
    options = pb.Options(num_predict=tokens, temperature=0)
    return {"chat": pb.Chat(messages=messages), "options": options, **fields}


def prompt(text: str, *images: bytes) -> dict[str, Any]:
    options = pb.Options(num_predict=16, temperature=0)
    return {"prompt": pb.Prompt(text=text, images=[pb.Image(data=i) for i in images]), "options": options}


def test_the_image_is_what_the_answer_depends_on(seer: InProcess) -> None:
    assert list(seer.model.info.capabilities) == ["completion", "vision"]
    shown = [(), (A,), (B,), (A, B), (B, A)]
    answers = [seer.run(**chat(user("What is this?", *images))) for images in shown]
    assert len({a.content for a in answers}) == len(shown)
    counts = [a.finished.usage.prompt_tokens for a in answers]
    assert [c - counts[0] for c in counts] == [len(images) * IMAGE_TOKENS for images in shown]


def test_text_equals_that_of_the_librarys_own_server(files: tuple[Path, Path], seer: InProcess) -> None:
    def part(image: bytes) -> dict[str, Any]:
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    with own_server(files[0], projector=files[1]) as server:
        for images in ((A,), (B,), (A, B)):
            content = [*map(part, images), {"type": "text", "text": "What is this?"}]
            body = {
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": 16,
                "top_k": 1,
            }
            expected = server.post("/v1/chat/completions", json=body).json()
            answer = seer.run(**chat(user("What is this?", *images)))
            assert answer.content == expected["choices"][0]["message"]["content"]
            assert answer.finished.usage.prompt_tokens == expected["usage"]["prompt_tokens"]


def test_requests_with_images_share_a_batch(seer: InProcess) -> None:
    requests = [chat(user("One", A)), chat(user("Two", B)), chat(user("Three"))]
    alone = [seer.run(**r).content for r in requests]
    assert [a.content for a in seer.run_together(requests)] == alone


def test_a_second_turn_finds_the_image_in_the_cache(seer: InProcess) -> None:
    start = user("A question with a picture of its own", picture(9))
    first = seer.run(**chat(start))
    turns = [start, pb.Message(role="assistant", content=first.content), user("And now?")]
    second = seer.run(**chat(*turns))
    assert second.finished.usage.cached_prompt_tokens >= first.finished.usage.prompt_tokens
    other = [user("A question with a picture of its own", picture(10)), *turns[1:]]
    assert seer.run(**chat(*other)).content != second.content


@pytest.mark.parametrize(
    ("text", "like"),
    [
        ("[img-0][img-1]Which?", "Which?"),
        ("[img-1]Which?", "[img-0][img-1]Which?"),
        ("[img-0][img-1]Is it [img-7]?", "Is it [img-7]?"),
    ],
)
def test_tags_in_rendered_text_say_where_images_go(seer: InProcess, text: str, like: str) -> None:
    assert seer.run(**prompt(text, A, B)).content == seer.run(**prompt(like, A, B)).content


def test_the_place_of_an_image_matters(seer: InProcess) -> None:
    texts = ["[img-0][img-1]Which?", "[img-1][img-0]Which?", "Which [img-0][img-1]?", "[img-0]Which[img-1]?"]
    assert len({seer.run(**prompt(t, A, B)).content for t in texts}) == len(texts)
    assert seer.run(**prompt("[img-0] [img-0]?", A)).finished.usage.prompt_tokens == 2 * IMAGE_TOKENS + 2


def test_rendered_by_the_host_or_by_the_runner(seer: InProcess) -> None:
    request = chat(user("What is this?", A))
    shown = GGUFEngine._tokenize(seer.model, pb.TokenizeRequest(chat=request["chat"]))
    assert "[img-0]" in shown.rendered and seer.model.library.marker not in shown.rendered
    answer = seer.run(**request)
    assert seer.run(**prompt(shown.rendered, A)).content == answer.content
    assert len(shown.tokens) == answer.finished.usage.prompt_tokens
    again = GGUFEngine._tokenize(seer.model, pb.TokenizeRequest(prompt=prompt(shown.rendered, A)["prompt"]))
    assert list(again.tokens) == list(shown.tokens)


def test_text_of_a_model_that_sees_is_that_of_one_that_does_not(
    files: tuple[Path, Path], seer: InProcess
) -> None:
    """Also where the library has to be called in another way, because a projector is loaded."""
    options = pb.Options(num_predict=16, temperature=0)
    requests: list[dict[str, Any]] = [
        {"prompt": pb.Prompt(text="Once"), "options": options},
        {"prompt": pb.Prompt(text="upon", context=[40, 41, 42]), "options": options, "return_context": True},
        {"prompt": pb.Prompt(text="a time", context=[1, 2]), "options": options, "logprobs": True},
        {"prompt": pb.Prompt(text="x" * 300), "options": options, "num_ctx": 128, "truncate": True},
        {
            "prompt": pb.Prompt(text="y", context=[5] * 200),
            "options": options,
            "num_ctx": 128,
            "truncate": True,
        },
    ]
    with InProcess(files[0]) as blind:
        for request in requests:
            seen, expected = seer.run(**request), blind.run(**request)
            assert seen.content == expected.content
            assert seen.finished.reason == expected.finished.reason
            assert seen.finished.usage.prompt_tokens == expected.finished.usage.prompt_tokens
            assert seen.finished.usage.completion_tokens == expected.finished.usage.completion_tokens
            assert seen.finished.context == expected.finished.context
            assert [t.id for t in seen.logprobs] == [t.id for t in expected.logprobs]
    stopped = seer.run(
        prompt=pb.Prompt(text="y", context=[1]), options=pb.Options(num_predict=0, temperature=0)
    )
    assert stopped.content == ""


def test_a_chat_that_is_too_long_loses_its_oldest_messages_with_their_images(seer: InProcess) -> None:
    last = [user("The last question", B)]
    fits = chat(*last, num_ctx=128)
    long = chat(user("x" * 70, A, A), pb.Message(role="assistant", content="y" * 70), *last, num_ctx=128)
    assert seer.run(**long, truncate=True).content == seer.run(**fits).content
    assert "exceeds the model's maximum context" in failure(seer, **long)
    assert "exceeds" in failure(seer, **{**prompt("x" * 120, A), "num_ctx": 128}, truncate=True)


def test_images_with_a_schema_and_with_tools(seer: InProcess) -> None:
    schema = '{"type":"object","properties":{"n":{"enum":[1,2]}},"required":["n"]}'
    constrained = chat(user("Count", A), constraint=pb.Constraint(json_schema=schema))
    assert seer.run(**constrained).content in ('{"n":1}', '{"n":2}')
    request = chat(user("Call", A), tokens=200)
    request["chat"].tools.add(
        json='{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"n":'
        '{"enum":[1,2]}},"required":["n"],"additionalProperties":false}}}'
    )
    request["chat"].tool_choice.mode = pb.ToolChoice.MODE_REQUIRED
    assert seer.run(**request).tool_calls[0].name == "f"


def test_what_cannot_be_combined_with_images(seer: InProcess) -> None:
    request = prompt("x", A)
    request["prompt"].context.extend([1, 2])
    assert "context and images" in failure(seer, **request)
    request = prompt("x", A)
    request["prompt"].suffix = "y"
    assert "suffix and images" in failure(seer, **request)
    for text in ("[img-0]", "What is [img-0]", ""):
        assert "ends with an image" in failure(seer, **prompt(text, A))


def test_without_a_projector_images_are_refused(files: tuple[Path, Path]) -> None:
    with InProcess(files[0], model_name="blind") as blind:
        for request in (chat(user("x", A)), prompt("x", A)):
            assert (
                failure(blind, **request) == '"blind" does not support vision: it has no projector for images'
            )


def failure(model: InProcess, **fields: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        model.run(**fields)
    failed = caught.value.args[0]
    assert failed.code in (3, 12), failed
    return failed.message


def saved(image: Image.Image, form: str, **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **more)
    return out.getvalue()


def claims(width: int, height: int) -> bytes:
    """A PNG file whose head claims that size."""
    head = b"IHDR" + struct.pack(">II", width, height) + A[24:29]
    return A[:12] + head + struct.pack(">I", zlib.crc32(head)) + A[33:]


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (A[: len(A) // 2], "damaged or incomplete"),
        (A[:20], "not a readable"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a readable"),
        (b"\xff\xd8\xff" + bytes(100), "not a readable"),
        (b"", "not a readable"),
        (b"This is no image.", "not a readable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable"),
        (saved(Image.new("RGB", (8, 8)), "GIF"), "not a readable"),
        (saved(Image.new("RGB", (8, 8)), "BMP"), "not a readable"),
        (b"P6 8 8 255\n" + bytes(192), "not a readable"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not a readable"),
        (claims(100_000, 100_000), "pixels"),
        (claims(0x7FFFFFFF, 0x7FFFFFFF), "pixels"),
        (claims(0, 8), "readable|damaged"),
        (saved(Image.new("1", (20_000, 1)), "PNG"), "at most 100 times the other"),
    ],
)
def test_what_is_no_image_is_refused(seer: InProcess, image: bytes, named: str) -> None:
    for request in (chat(user("x", image)), prompt("x", image), chat(user("x", A, image))):
        assert re.search(named, failure(seer, **request))
    assert seer.run(**chat(user("x", A))).finished


@pytest.mark.parametrize(
    "image",
    [
        saved(Image.new("RGB", (1, 1), "red"), "PNG"),
        saved(Image.new("RGB", (100, 1), "red"), "PNG"),
        saved(Image.new("RGBA", (50, 30), (255, 0, 0, 10)), "PNG"),
        saved(Image.new("P", (50, 30)), "PNG"),
        saved(Image.new("I;16", (50, 30)), "PNG"),
        saved(Image.new("L", (50, 30)), "JPEG"),
        saved(Image.new("CMYK", (50, 30)), "JPEG"),
        saved(Image.new("RGB", (50, 30), "blue"), "WEBP"),
    ],
)
def test_images_of_all_kinds(seer: InProcess, image: bytes) -> None:
    answer = seer.run(**chat(user("x", image)))
    assert answer.finished.usage.prompt_tokens == seer.run(**chat(user("x", A))).finished.usage.prompt_tokens


def test_large_images_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_MAX_PIXELS", 1000)
    [large, small] = media.encode(
        [pb.Image(data=picture(1, (400, 100))), pb.Image(data=picture(1, (20, 30)))]
    )
    assert large.size == (63, 15) and small.size == (20, 30)
    assert base64.b64decode(small.data).startswith(b"P6 20 30 255\n")


zeros = np.zeros

# What is wrong about a projector, and what the refusal says.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "of another model": ({"width": 128}, "another model's projector"),
    "patches of no pixels": ({"metadata": {"clip.vision.patch_size": 0}}, "patch_size is 0"),
    "patches larger than images": ({"metadata": {"clip.vision.image_size": 4}}, "larger than its images"),
    "images of no pixels": ({"metadata": {"clip.vision.image_size": 0}}, "image_size is 0"),
    "enormous images": ({"metadata": {"clip.vision.image_size": 1 << 31}}, "image_size is"),
    "no heads": ({"metadata": {"clip.vision.attention.head_count": 0}}, "head_count is 0"),
    "heads that do not divide": ({"metadata": {"clip.vision.attention.head_count": 7}}, "7 heads"),
    "layers that are not there": (
        {"metadata": {"clip.vision.block_count": 9}},
        "v.blk.2.attn_q.weight is miss",
    ),
    "layers without end": ({"metadata": {"clip.vision.block_count": 0xFFFFFFFF}}, "block_count is"),
    "a number that is a text": ({"metadata": {"clip.vision.block_count": "two"}}, "block_count is two"),
    "another width": ({"metadata": {"clip.vision.embedding_length": 48}}, "should have 48"),
    "an epsilon that is none": (
        {"metadata": {"clip.vision.attention.layer_norm_epsilon": float("nan")}},
        "epsilon is nan",
    ),
    "no encoder": ({"metadata": {"clip.has_vision_encoder": False}}, "no encoder for images"),
    "no positions": ({"tensors": {"v.position_embd.weight": None}}, "position_embd.weight is missing"),
    "too few positions": (
        {"tensors": {"v.position_embd.weight": zeros((3, TOWER))}},
        f"3 rows for {IMAGE_TOKENS + 1} places",
    ),
    "no patches": ({"tensors": {"v.patch_embd.weight": None}}, "patch_embd.weight is missing"),
    "patches of another size": (
        {"tensors": {"v.patch_embd.weight": zeros((TOWER, 3, 2 * PATCH, 2 * PATCH))}},
        "patch_embd.weight has the shape",
    ),
    "patches without dimensions": ({"tensors": {"v.patch_embd.weight": zeros(TOWER)}}, "has the shape"),
    "a class of another width": ({"tensors": {"v.class_embd": zeros(7)}}, "v.class_embd has the shape"),
    "no attention": ({"tensors": {"v.blk.0.attn_q.weight": None}}, "v.blk.0.attn_q.weight is missing"),
    "a feed forward that does not fit": (
        {"tensors": {"v.blk.0.ffn_up.weight": zeros((64, 40))}},
        "v.blk.0.ffn",
    ),
    "no matrix": ({"tensors": {"mm.0.weight": None}}, "mm.0.weight is missing"),
    "half a projector": ({"tensors": {"mm.2.bias": None}}, "mm.2.bias is missing"),
    "a bias of another size": ({"tensors": {"mm.0.bias": zeros(5)}}, "mm.0.bias has 5 numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_projectors_that_would_end_the_process_are_refused(
    files: tuple[Path, Path], tmp_path: Path, fault: str
) -> None:
    changes, named = FAULTS[fault]
    path = make_projector(tmp_path / "bad.gguf", **changes)
    with pytest.raises(RunnerError, match=named) as refused:
        check(path, read_metadata(files[0]), "seer")
    assert str(refused.value).startswith("seer cannot be loaded: its projector")


def swap(path: Path, make: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(make(path.read_bytes()))
    return path


def test_a_load_tells_what_is_wrong_about_a_projector(files: tuple[Path, Path], tmp_path: Path) -> None:
    def load(projector: Path) -> str:
        with pytest.raises(RunnerError) as refused:
            load_model(
                pb.LoadRequest(
                    model_path=str(files[0]), projector_path=str(projector), num_ctx=512, model_name="seer"
                )
            )
        return str(refused.value)

    assert "is 'llama', not 'clip'" in load(files[0])
    assert "another model's projector" in load(make_projector(tmp_path / "wide.gguf", width=128))
    unknown = make_projector(tmp_path / "unknown.gguf", metadata={"clip.projector_type": "nonsense"})
    assert "unknown projector type: nonsense" in load(unknown)
    assert "cannot be read as a GGUF" in load(swap(unknown, lambda data: data[:100]))
    assert "does not begin like one" in load(swap(unknown, lambda _: b"nothing of the kind"))
    assert "claims" in load(swap(unknown, lambda _: b"GGUF\x03\0\0\0" + b"\xff" * 16))


def test_a_real_runner_survives_what_clients_send(files: tuple[Path, Path]) -> None:
    """The same over gRPC, and side by side."""
    from tests.support.runner_process import RunnerProcess

    with RunnerProcess(engine="gguf") as runner:
        info = runner.load(files[0], projector_path=str(files[1]), num_ctx=512, num_thread=1)
        assert "vision" in info.capabilities
        with runner.session() as session:
            good = [session.start(**chat(user("What is this?", A))) for _ in range(3)]
            bad = [session.start(**chat(user("x", data))) for data in (A[:60], b"", claims(1 << 30, 1 << 30))]
            answers: list[Answer] = [session.result(i) for i in good]
            assert len({a.content for a in answers}) == 1 and answers[0].content
            assert all(session.result(i).failed.code == 3 for i in bad)
            assert session.run(**chat(user("What is this?", A))).content == answers[0].content
