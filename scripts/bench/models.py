"""Models to measure with: the bundled demo model and a llama more than ten times its size, both with an
end-of-sequence token that they do not emit, so that every answer has the asked-for length."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tests.support.tiny_models import make_model

DEMO = Path(__file__).resolve().parents[2] / "python_runner" / "ollmlx" / "models" / "demo"
# A llama of about 16 million parameters.
_LARGER = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 9, "head_dim": 96,
    "max_position_embeddings": 8192,
}  # fmt: skip

_number = itertools.count()


def make(directory: Path) -> dict[str, Path]:
    """Write both below `directory`."""
    demo = directory / "demo"
    demo.mkdir()
    for file in DEMO.iterdir():
        (demo / file.name).write_bytes(file.read_bytes())
    larger = make_model(directory / "larger", "llama", endless=True, **_LARGER)
    _only_ascii(larger)
    return {
        "demo, 1.3M": _end_with(demo, "</tool_response>"),
        "llama, 16M": _end_with(larger, "<|endoftext|>"),
    }


def _only_ascii(model: Path) -> None:
    """Let the logits of all tokens that are not printable ASCII be 0, which is never the highest of hundreds of random
    ones. Parts of characters are held back until they are whole, which first tokens would seem to wait for, and what is
    none comes back to the model as three bytes."""
    import mlx.core as mx

    entries = json.loads((model / "tokenizer.json").read_text())
    known = entries["model"]["vocab"]
    special = {entry["id"] for entry in entries["added_tokens"]}
    plain = {number for text, number in known.items() if len(text) == 1 and "!" <= text <= "~"} - special
    weights = mx.load(str(model / "model.safetensors"))
    head = weights["lm_head.weight"]
    keep = mx.array([number in plain for number in range(head.shape[0])])[:, None]
    weights["lm_head.weight"] = mx.where(keep, head, 0)
    mx.save_safetensors(str(model / "model.safetensors"), weights, {"format": "mlx"})


def _end_with(model: Path, token: str) -> Path:
    """Make `token` the one that ends an answer."""
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    [number] = [entry["id"] for entry in added if entry["content"] == token]
    for name, key, value in (
        ("config.json", "eos_token_id", number),
        ("generation_config.json", "eos_token_id", number),
        ("tokenizer_config.json", "eos_token", token),
    ):
        if (model / name).exists():
            (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | {key: value}))
    return model


def prompts(streams: int) -> list[str]:
    """New ones each time: a server would have the prefixes of old ones in its cache."""
    number = next(_number)
    return [f"{number}.{i}: tell me a long story about the number {i}." for i in range(streams)]


def text(tokenizer: object, tokens: int) -> str:
    """A new text of about so many tokens."""
    number = next(_number)
    words = ""
    while len(words) < 8 * tokens:
        words += f"{number} {len(words)} ways to tell a story. "
    ids = tokenizer.encode(words)[:tokens]
    return tokenizer.decode(ids)
