"""Models to measure with: the bundled demo model and a llama more than ten times its size, both without end."""

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
    return {
        "demo, 1.3M": endless_copy(DEMO, directory / "demo"),
        "llama, 16M": make_model(directory / "larger", "llama", endless=True, **_LARGER),
    }


def endless_copy(model: Path, target: Path) -> Path:
    """The model without end-of-sequence tokens, so that every answer has the asked-for length."""
    target.mkdir()
    for file in model.iterdir():
        data = file.read_bytes()
        if file.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            entries = json.loads(data)
            for key in ("eos_token_id", "eos_token"):
                entries.pop(key, None)
            data = json.dumps(entries).encode()
        (target / file.name).write_bytes(data)
    return target


def prompts(streams: int) -> list[str]:
    """New ones each time: a server would have the prefixes of old ones in its cache."""
    number = next(_number)
    return [f"{number}.{i}: tell me a long story about the number {i}." for i in range(streams)]


def text(tokenizer: object, tokens: int) -> str:
    """A new text of about so many tokens."""
    number = next(_number)
    words = " ".join(f"{number} {i} ways to tell a story." for i in range(tokens))
    ids = tokenizer.encode(words)[:tokens]
    return tokenizer.decode(ids)
