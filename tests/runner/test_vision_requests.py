"""What can go wrong with images, and what is not computed twice."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from ollmlx.runner.mlx.scheduler import Scheduler
from ollmlx.runner.v1 import runner_pb2 as pb
from tests.support.runner_process import Answer
from tests.support.tiny_vision_models import make_vision_model, picture
from tests.support.worker import InProcess, log_towers

pytest.importorskip("mlx_vlm", reason='needs the extra: pip install "ollmlx[vision]"')

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]
A, B = picture(1), picture(2)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vision_model(tmp_path_factory.mktemp("vision") / "qwen2_vl", "qwen2_vl", endless=True)


@pytest.fixture(scope="module")
def worker(qwen: Path) -> Iterator[InProcess]:
    with InProcess(qwen, model_name="seer", num_ctx=512) as worker:
        yield worker


def user(text: str, *pictures: bytes) -> pb.Message:
    return pb.Message(role="user", content=text, images=[pb.Image(data=p) for p in pictures])


def chat(*messages: pb.Message, tokens: int = 12, **fields: object) -> dict[str, object]:
    return {
        "chat": pb.Chat(messages=messages),
        "options": pb.Options(num_predict=tokens, temperature=0),
        **fields,
    }


def ask(text: str, *pictures: bytes, **fields: object) -> dict[str, object]:
    return chat(user(text, *pictures), **fields)


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG file that claims a size, whatever its pixels are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def gif() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("P", (8, 8)).save(out, "GIF")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "not a readable PNG, JPEG or WebP"),
        (b"hello", "not a readable PNG, JPEG or WebP"),
        (b"/etc/passwd", "not a readable PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable PNG, JPEG or WebP"),
        (gif(), "not a readable PNG, JPEG or WebP"),
        (A[:20], "not a readable PNG, JPEG or WebP"),
        (A[:-60], "damaged or incomplete"),
        (picture(1, (300, 300), "JPEG")[:-400], "damaged or incomplete"),
        (picture(1, (300, 300), "WEBP")[:-40], "not a readable PNG, JPEG or WebP"),
        (png(12_000, 12_000, b"\0" * 1000), "12000 x 12000 pixels; at most 67108864 are allowed"),
        (png(20_000, 20_000, b"\0" * 1000), "too many pixels; at most 67108864 are allowed"),
        (png(2**31 - 1, 2**31 - 1, b""), "pixels"),
        (png(0, 0, b""), "image"),
        (png(40, 40, b"\0" * 3), "damaged or incomplete"),
        (picture(1, (1000, 2)), "the model cannot take these images"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_a_bad_image_is_refused(worker: InProcess, data: bytes, named: str) -> None:
    failed = worker.run(**ask("What is this?", data)).failed
    assert failed.code == INVALID
    assert named in failed.message


def test_the_bad_one_of_several_is_numbered(worker: InProcess) -> None:
    failed = worker.run(**ask("What are these?", A, b"x", B)).failed
    assert failed.message == "image 2 of 3 is not a readable PNG, JPEG or WebP file"


def test_images_have_a_bound_together(worker: InProcess) -> None:
    huge = png(8000, 8000, b"")
    assert "together" in worker.run(**ask("What are these?", *[huge] * 5)).failed.message


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_formats(worker: InProcess, form: str) -> None:
    assert worker.run(**ask("What is this?", picture(1, form=form))).finished


def test_an_image_is_seen_as_people_see_it(worker: InProcess) -> None:
    """Turned as EXIF says, transparency on white."""
    from PIL import Image

    def saved(image: Image.Image, **fields: object) -> bytes:
        out = io.BytesIO()
        image.save(out, "PNG", **fields)
        return out.getvalue()

    plain = Image.open(io.BytesIO(picture(5, (60, 30))))
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = saved(plain.rotate(-90, expand=True), exif=exif)
    expected = worker.run(**ask("What is this?", saved(plain))).content
    assert worker.run(**ask("What is this?", turned)).content == expected
    assert worker.run(**ask("What is this?", saved(plain.rotate(-90, expand=True)))).content != expected
    clear = plain.convert("RGBA")
    clear.putalpha(0)
    white = worker.run(**ask("What is this?", saved(Image.new("RGB", plain.size, "white")))).content
    assert worker.run(**ask("What is this?", saved(clear))).content == white != expected


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (ask("Say <|image_pad|>", A), "a message contains <|image_pad|>"),
        (
            {"prompt": pb.Prompt(text="<|image_pad|> x <|image_pad|> y", images=[pb.Image(data=A)])},
            "has 2 places for images (<|image_pad|>), but 1 images came",
        ),
        (
            {"prompt": pb.Prompt(text="x <|image_pad|>", images=[pb.Image(data=A)])},
            "ends with an image",
        ),
        ({"prompt": pb.Prompt(text="x", context=[1, 2], images=[pb.Image(data=A)])}, "context"),
        ({"chat": pb.Chat(messages=[user("x", A)], context=[1, 2])}, "context"),
    ],
)
def test_a_wrong_place_for_an_image_is_refused(
    worker: InProcess, request_: dict[str, object], named: str
) -> None:
    failed = worker.run(**request_).failed
    assert failed.code == INVALID
    assert named in failed.message


def test_a_suffix_and_images_do_not_go_together(worker: InProcess) -> None:
    prompt = pb.Prompt(text="x", suffix="y", images=[pb.Image(data=A)])
    assert worker.run(prompt=prompt).failed.code == UNIMPLEMENTED


def test_raw_prompts_say_where_images_go(worker: InProcess) -> None:
    def run(text: str) -> str:
        prompt = pb.Prompt(text=text, images=[pb.Image(data=A)])
        return worker.run(prompt=prompt, options=pb.Options(num_predict=12, temperature=0)).content

    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert run("What is it?") == run(f"{image}What is it?") == run("[img-0]What is it?")
    assert run("What [img-0] is it?") == run(f"What {image} is it?") != run("What is it?")


PARTS_ONLY = (
    "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% elif p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{{ '\\n' }}"
    "{% endfor %}"
)
EITHER = (
    "{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' or 'image' in p %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in p %}"
    "{{ p.text }}{% endif %}{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}"
)
TEXT_ONLY = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
BLIND = "{% for m in messages %}{{ m.role }}:{{ m.content | upper }}\n{% endfor %}"


def give_template(worker: InProcess, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    for tokenizer in (worker.worker.tokenizer, worker.worker.eyes.tokenizer):
        monkeypatch.setattr(tokenizer._tokenizer, "chat_template", template)


@pytest.mark.parametrize(
    "template", [PARTS_ONLY, EITHER, TEXT_ONLY], ids=["parts only", "either", "text only"]
)
def test_all_kinds_of_templates_take_images(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Images go before the text of their message, and messages without any say what they say."""
    give_template(worker, monkeypatch, template)
    messages = [user("One", A), pb.Message(role="assistant", content="Two"), user("Three", A, B)]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    rendered = worker.tokenize(chat(*messages))
    assert rendered == f"user:{image}One\nassistant:Two\nuser:{image}{image}Three\n"
    assert worker.tokenize(chat(pb.Message(role="user", content="Only text"))) == "user:Only text\n"


def test_a_template_without_a_place_for_images_says_so(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_template(worker, monkeypatch, BLIND)
    failed = worker.run(**ask("What is this?", A)).failed
    assert failed.code == UNIMPLEMENTED
    assert "no place for the images" in failed.message


def test_a_template_in_a_file_of_the_processor_is_found(qwen: Path, tmp_path: Path) -> None:
    import json

    def move(path: Path) -> None:
        config = json.loads((path / "tokenizer_config.json").read_text())
        (path / "chat_template.json").write_text(json.dumps({"chat_template": config.pop("chat_template")}))
        (path / "tokenizer_config.json").write_text(json.dumps(config))

    with InProcess(without(qwen, tmp_path / "m", move)) as worker:
        assert worker.tokenize(ask("Hi")).startswith("<|im_start|>user\nHi")
        assert "<|im_start|>" in worker.tokenize(ask("Hi", A))
        assert worker.run(**ask("Hi", A)).finished


def test_the_number_of_images_is_bound(worker: InProcess) -> None:
    tiny = picture(1, (2, 2))
    assert (
        "at most 64 are allowed"
        in worker.run(**ask("What are these?", *[tiny] * 65, truncate=True)).failed.message
    )
    history = [user(f"Number {i}", tiny) for i in range(80)]
    assert worker.run(**chat(*history, truncate=False)).failed.code == INVALID
    assert worker.run(**chat(*history, truncate=True)).finished.usage.prompt_tokens < 512


def test_image_tokens_are_counted_and_bound_by_the_context(worker: InProcess) -> None:
    def prompt_tokens(*pictures: bytes) -> int:
        return worker.run(**ask("What is this?", *pictures)).finished.usage.prompt_tokens

    text, small, large = (
        prompt_tokens(),
        prompt_tokens(picture(1, (28, 28))),
        prompt_tokens(picture(1, (112, 112))),
    )
    assert (small - text, large - text) == (2 + 1, 2 + 16)

    refused = worker.run(**ask("What is this?", A, num_ctx=small)).failed
    assert refused.code == INVALID
    assert "exceeds the model's maximum context length" in refused.message


def test_a_long_chat_loses_its_oldest_messages_with_their_images(worker: InProcess) -> None:
    turns = [user(f"Look at number {i}", picture(i, (56, 56))) for i in range(8)]
    last = worker.run(**chat(turns[-1])).finished.usage.prompt_tokens
    answer = worker.run(**chat(*turns, num_ctx=3 * last + 5, truncate=True))
    assert last < answer.finished.usage.prompt_tokens <= 3 * last + 5
    assert (
        answer.content == worker.run(**chat(*turns[-3:])).content
        or answer.finished.usage.prompt_tokens < 3 * last
    )
    assert worker.run(**chat(*turns, num_ctx=3 * last, truncate=False)).failed.code == INVALID


def test_a_full_context_with_images_ends_the_answer(worker: InProcess) -> None:
    answer = worker.run(**ask("What is this?", A, tokens=400, num_ctx=80, shift=True))
    assert answer.finished.reason == pb.Finished.REASON_LENGTH
    usage = answer.finished.usage
    assert usage.prompt_tokens + usage.completion_tokens == 80


def turn(answer: Answer) -> pb.Message:
    return pb.Message(role="assistant", content=answer.content)


def test_a_second_turn_computes_only_what_is_new(worker: InProcess) -> None:
    start = user("A question of this test", A)
    first = worker.run(**chat(start))
    more = [start, turn(first), user("And what is beside it?")]
    second = worker.run(**chat(*more))
    usage = second.finished.usage
    assert usage.cached_prompt_tokens >= first.finished.usage.prompt_tokens
    other = worker.run(
        **chat(user("A question of this test", B), turn(first), user("And what is beside it?"))
    )
    # What comes before the image is shared.
    assert other.finished.usage.cached_prompt_tokens < 20
    assert other.content != second.content
    third = worker.run(**chat(*more, turn(second), user("And here?", B)))
    assert third.finished.usage.cached_prompt_tokens >= usage.prompt_tokens


def test_a_second_turn_does_not_look_again(worker: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from ollmlx.runner.mlx.mlxvlm import ImagePrompt

    start = user("A question that is followed by another", A, B)
    first = worker.run(**chat(start))

    def look(self: ImagePrompt, tokens: int) -> None:
        raise AssertionError("the vision tower was asked")

    monkeypatch.setattr(ImagePrompt, "look", look)
    assert worker.run(**chat(start, turn(first), user("Another"))).finished
    assert worker.run(**chat(user("A new image", picture(78)))).failed


def test_images_of_earlier_turns_are_not_decoded_again(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollmlx.runner import images

    start = user("What will be remembered", picture(80), A)
    first = worker.run(**chat(start))

    def decode(_: object) -> None:
        raise AssertionError("the images were decoded")

    monkeypatch.setattr(images, "decode", decode)
    assert worker.run(**chat(start, turn(first), user("Go on"))).finished


def test_cached_and_computed_answers_are_equal(qwen: Path, worker: InProcess) -> None:
    start = user("Is what is stored right?", B)
    first = worker.run(**chat(start))
    conversation = chat(start, turn(first), user("Look again, and here", A), tokens=40)
    cached = worker.run(**conversation)
    assert cached.finished.usage.cached_prompt_tokens > 0
    with InProcess(qwen, model_name="seer") as fresh:
        computed = fresh.run(**conversation)
    assert computed.finished.usage.cached_prompt_tokens == 0
    assert cached.content == computed.content


def test_a_new_conversation_about_known_images_runs_no_tower(
    worker: InProcess, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, other, new = picture(81), picture(82), picture(83)
    worker.run(**ask("What is this?", known, other))
    towers = log_towers(worker, monkeypatch)
    system = pb.Message(role="system", content="Answer otherwise.")
    again = chat(system, user("Which one?", other), user("And this one?", known))
    said = worker.run(**again)
    assert said.finished.usage.cached_prompt_tokens == 0, "no cache of a prompt helps"
    assert not towers
    worker.run(**chat(system, user("Three now", known, new, other)))
    assert len(towers) == 1, "the new one"
    with InProcess(qwen, num_ctx=512) as fresh:
        assert fresh.run(**again).content == said.content


def test_images_that_a_cached_prompt_has_are_not_computed(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what is known of them may be gone."""
    start = user("A long conversation begins with", picture(84))
    first = worker.run(**chat(start))
    worker.worker.call(worker.worker.scheduler._image_prefills.forget_features).result(10)
    towers = log_towers(worker, monkeypatch)
    more = chat(start, turn(first), user("A second image", picture(85)))
    said = worker.run(**more)
    assert len(towers) == 1
    worker.worker.call(worker.worker.scheduler._prefixes.clear).result(10)
    assert worker.run(**more).content == said.content


def test_features_of_images_have_a_bound_in_bytes(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ollmlx.runner.mlx.vision import features

    monkeypatch.setattr(features, "_MAX_BYTES", 1_500)
    with InProcess(qwen) as model:
        kept = model.worker.scheduler._image_prefills._features
        said = [model.run(**ask("What is this?", picture(n))).content for n in range(6)]
        assert 0 < kept.bytes <= 1_500
        model.worker.call(model.worker.scheduler._prefixes.clear).result(10)
        towers = log_towers(model, monkeypatch)
        assert model.run(**ask("What is this?", picture(0))).content == said[0]
        assert towers, "the oldest is gone"
        model.worker.call(model.worker.scheduler.trim, 1 << 30).result(10)
        assert kept.bytes == 0, "memory that others need is given back"


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "qwen3_5"])
def test_caches_that_cannot_be_cut_keep_what_a_second_turn_needs(tmp_path: Path, family: str) -> None:
    """Windows and linear attention: only what was kept on the way can be used again. Gemma 4's images are computed at
    once, since their tokens see each other."""
    path = make_vision_model(tmp_path / family, family, endless=True)
    with InProcess(path) as worker:
        start = user("What is on this picture, which is larger than the window of attention?", A)
        first = worker.run(**chat(start))
        conversation = chat(start, turn(first), user("And now?"))
        second = worker.run(**conversation)
        assert second.finished.usage.cached_prompt_tokens > first.finished.usage.prompt_tokens * 0.8
    with InProcess(path) as fresh:
        assert fresh.run(**conversation).content == second.content


def test_a_cancelled_prompt_is_gone_and_its_neighbour_is_not(worker: InProcess) -> None:
    neighbour = ask("A neighbour of the doomed", B, tokens=60)
    alone = worker.run(**neighbour).content
    doomed = worker.start(**ask("The doomed " * 30, A, A, A, tokens=300))
    running = worker.start(**neighbour)
    worker.worker.call(worker.worker.scheduler.cancel, worker, doomed)
    assert worker.result(doomed).failed.message == "request canceled"
    assert worker.result(running).content == alone


def test_between_the_images_of_a_prompt_others_get_their_tokens(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = worker.start(**ask("Somebody who talks", tokens=400))
    while not (event := worker._inboxes[talking].get(timeout=60)).HasField("delta"):
        assert not event.HasField("failed")
    log = log_towers(worker, monkeypatch)
    batch = worker.worker.scheduler._batch
    step = batch.step

    def logging() -> object:
        log.append("step")
        return step()

    monkeypatch.setattr(batch, "step", logging)
    worker.run(**ask("Five images", *[picture(n) for n in range(90, 95)]))
    worker.worker.call(worker.worker.scheduler.cancel, worker, talking).result(10)
    towers = [i for i, word in enumerate(log) if word == "tower"]
    assert len(towers) == 5, "one image at a time"
    assert all("step" in log[a:b] for a, b in itertools.pairwise(towers)), "decode steps in between"


def test_a_failed_step_brings_rows_with_images_back(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask("First of two", A, tokens=60), ask("Second of two", B, tokens=60), ask("Text", tokens=60)]
    expected = [a.content for a in worker.run_together(requests)]
    batch = worker.worker.scheduler._batch
    step, steps = batch.step, iter(range(100))

    def failing(*arguments: object) -> object:
        if next(steps) == 30:
            raise RuntimeError("injected")
        return step(*arguments)

    monkeypatch.setattr(batch, "step", failing)
    answers = worker.run_together(requests)
    assert worker.worker.scheduler._batch is not batch, "the step must have failed"
    assert [a.content for a in answers] == expected


def test_a_step_that_fails_while_images_are_computed_is_not_their_fault(
    worker: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a first failure rows come back one at a time, and the newcomer is suspected: not before it is a row."""
    scheduler = worker.worker.scheduler
    requests = [ask("Text", tokens=60), ask("More text", tokens=60), ask("And an image", A, B, tokens=60)]
    expected = [a.content for a in worker.run_together(requests)]
    worker.worker.call(scheduler._prefixes.clear).result(10)
    worker.worker.call(scheduler._image_prefills.forget_features).result(10)
    monkeypatch.setattr("ollmlx.runner.mlx.mlxlm.make_batch", breaking := Breaking(scheduler))
    worker.worker.call(lambda: setattr(scheduler, "_batch", scheduler._make_batch())).result(10)
    assert [a.content for a in worker.run_together(requests)] == expected
    assert breaking.failed == 2, "when all were rows, and when one of them was being looked at again"


class Breaking:
    """Makes batches whose steps fail: once with three rows, and once with two while images are computed."""

    def __init__(self, scheduler: Scheduler) -> None:
        from ollmlx.runner.mlx import mlxlm

        self.failed = 0
        self._scheduler = scheduler
        self._make = mlxlm.make_batch

    def __call__(self, *arguments: object) -> object:
        batch = self._make(*arguments)
        step = batch.step

        def breaking() -> object:
            rows, looking = len(self._scheduler._rows), len(self._scheduler._image_prefills)
            if (self.failed, rows, looking) in ((0, 3, 0), (1, 2, 1)):
                if self.failed == 0:
                    self._scheduler._prefixes.clear()
                    self._scheduler._image_prefills.forget_features()
                self.failed += 1
                raise RuntimeError("injected")
            return step()

        batch.step = breaking
        return batch


def test_a_prompt_that_fails_takes_nobody_with_it(worker: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from ollmlx.runner.mlx.mlxvlm import ImagePrompt

    good = ask("What is this?", A, tokens=40)
    expected = worker.run(**good).content
    see = ImagePrompt.look

    def fail_for_many(self: ImagePrompt, tokens: int) -> None:
        if len(self.tokens) > 100:
            raise ValueError("injected")
        see(self, tokens)

    monkeypatch.setattr(ImagePrompt, "look", fail_for_many)
    bad, fine = worker.run_together([ask("x" * 120, picture(77)), good])
    assert "injected" in bad.failed.message
    assert fine.content == expected


def test_seeing_is_a_capability(worker: InProcess) -> None:
    assert list(worker.worker.info.capabilities) == ["completion", "vision"]


def without(path: Path, to: Path, change: Callable[[Path], None]) -> Path:
    to.mkdir()
    for file in path.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    change(to)
    return to


def test_without_the_extra_text_is_answered_and_images_name_it(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from ollmlx.runner.mlx.vision import support

    def rename_for_mlx_lm(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        text = {k: v for k, v in config.items() if k != "vision_config"}
        (path / "config.json").write_text(json.dumps({**config, "text_config": text}))

    path = without(qwen, tmp_path / "m", rename_for_mlx_lm)
    monkeypatch.setattr(support.importlib.util, "find_spec", lambda name: None)
    with InProcess(path, model_name="seer") as blind:
        assert list(blind.worker.info.capabilities) == ["completion"]
        assert blind.run(**ask("Only text")).finished
        failed = blind.run(**ask("What is this?", A)).failed
    assert failed.code == UNIMPLEMENTED
    assert failed.message == (
        '"seer" needs the package mlx-vlm to see images, which is not installed; '
        'install it with: pip install "ollmlx[vision]"'
    )


def test_a_model_that_cannot_do_without_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ollmlx.runner.errors import RunnerError
    from ollmlx.runner.mlx.vision import support

    path = make_vision_model(tmp_path / "idefics3", "idefics3")
    monkeypatch.setattr(support.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(RunnerError, match=r'"seer" needs .* pip install "ollmlx\[vision\]"'),
        InProcess(path, model_name="seer"),
    ):
        pass


@pytest.mark.parametrize(
    "file", ["preprocessor_config.json", "model.safetensors"], ids=["no processor", "no vision weights"]
)
def test_a_model_without_eyes_is_no_model_that_sees(qwen: Path, tmp_path: Path, file: str) -> None:
    import mlx.core as mx

    from ollmlx.runner.mlx.vision.support import sees

    def blind(path: Path) -> None:
        if file.endswith(".json"):
            (path / file).unlink()
            return
        weights = {k: v for k, v in mx.load(str(path / file)).items() if "vision" not in k}
        mx.save_safetensors(str(path / file), weights)

    assert sees(qwen, {"vision_config": {"depth": 1}})
    assert not sees(without(qwen, tmp_path / "m", blind), {"vision_config": {"depth": 1}})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"model_file": "evil.py"}),
        ("model.safetensors.index.json", {"weight_map": {"x": "../../other/model.safetensors"}}),
    ],
)
def test_nothing_outside_of_the_model_is_read_or_run(
    qwen: Path, tmp_path: Path, name: str, content: dict
) -> None:
    import json

    from ollmlx.runner.mlx import mlxlm, mlxvlm

    def spoil(path: Path) -> None:
        old = json.loads((path / name).read_text()) if (path / name).is_file() else {}
        (path / name).write_text(json.dumps(old | content))
        (path / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")

    path = without(qwen, tmp_path / "m", spoil)
    with pytest.raises(ValueError, match=r"not executed|outside of the model"):
        mlxvlm.load_model(path, mlxlm.load_config(path), lambda *_: None)
    assert not (tmp_path / "pwned").exists()
