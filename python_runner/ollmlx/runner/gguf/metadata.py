"""What the head of a GGUF file says about its model.

The host has checked the file before a runner sees it; the bounds here only keep a file that changed since from
taking the process with it. Arrays are counted and passed over: vocabularies are llama.cpp's business.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from ollmlx.runner.errors import invalid

_MAX_KEYS = 1 << 20
_MAX_STRING = 1 << 24
_MAX_TENSORS = 1 << 20
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
# Scalar types by their number in the file.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip

# Architectures that give vectors and no text.
_ENCODERS = (
    "bert",
    "eurobert",
    "gemma-embedding",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "neo-bert",
    "nomic-bert",
    "nomic-bert-moe",
    "t5encoder",
)


class Metadata:
    """Keys and values of one file, arrays as their number of elements; and the shapes of its tensors, fastest dimension
    first."""

    def __init__(self, values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        self.values = values
        self.shapes = shapes
        self.architecture: str = values.get("general.architecture", "")

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the model's own architecture."""
        return self.values.get(f"{self.architecture}.{key}", default)

    def number(self, key: str) -> int:
        """A count; 0 where the file has none or has one for each layer."""
        value = self.get(key, 0)
        return int(value) if isinstance(value, (int, float)) else 0

    @property
    def chat_template(self) -> str:
        return self.values.get("tokenizer.chat_template", "")

    @property
    def gives_text(self) -> bool:
        """False for models that were made for vectors: encoders, and decoders whose file names a pooling."""
        return self.architecture not in _ENCODERS and not self.number("pooling_type")

    @property
    def reranks(self) -> bool:
        return self.number("pooling_type") == 4

    def kv_bytes_per_token(self, bytes_per_value: float) -> int:
        """Bytes that a token takes in the KV cache of all layers; 0 where there is none."""
        heads = self.get("attention.head_count_kv", self.number("attention.head_count"))
        if not isinstance(heads, int):
            heads = self.number("attention.head_count")
        size = self.number("embedding_length") // max(self.number("attention.head_count"), 1)
        width = (self.number("attention.key_length") or size) + (
            self.number("attention.value_length") or size
        )
        return int(self.number("block_count") * heads * width * bytes_per_value) if heads else 0


def read_metadata(path: Path) -> Metadata:
    """Raises INVALID_ARGUMENT for what is not a GGUF file."""
    try:
        with path.open("rb") as file:
            return Metadata(*_read(file))
    except (OSError, struct.error, ValueError) as err:
        raise invalid(f"{path.name} cannot be read as a GGUF file: {err}") from err


def _read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin like one")
    version, tensors, keys = _unpack(file, "<I"), _unpack(file, "<Q"), _unpack(file, "<Q")
    if version not in (2, 3):
        raise ValueError(f"its version {version} is not supported")
    if keys > _MAX_KEYS:
        raise ValueError(f"it claims {keys} keys")
    if tensors > _MAX_TENSORS:
        raise ValueError(f"it claims {tensors} tensors")
    values = {_read_string(file): _read_value(file, _unpack(file, "<I")) for _ in range(keys)}
    return values, dict(_read_shape(file) for _ in range(tensors))


def _read_shape(file: BinaryIO) -> tuple[str, tuple[int, ...]]:
    name, dimensions = _read_string(file), _unpack(file, "<I")
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"its tensor {name} claims {dimensions} dimensions")
    shape = tuple(_unpack(file, "<Q") for _ in range(dimensions))
    # Its type and its place.
    _unpack(file, "<I"), _unpack(file, "<Q")
    return name, shape


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _unpack(file, _SCALARS[kind])
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        raise ValueError(f"it has a value of the unknown type {kind}")
    kind, count = _unpack(file, "<I"), _unpack(file, "<Q")
    if kind in _SCALARS:
        file.seek(count * struct.calcsize(_SCALARS[kind]), 1)
    elif kind == _STRING:
        for _ in range(count):
            file.seek(_length(file), 1)
    else:
        raise ValueError("it has an array of arrays")
    return _Count(count)


class _Count(str):
    """Stands for an array: no number, so that nobody takes it for a scalar."""

    def __new__(cls, count: int) -> _Count:
        self = super().__new__(cls, f"[{count}]")
        self.count = count
        return self


def _read_string(file: BinaryIO) -> str:
    length = _length(file)
    data = file.read(length)
    if len(data) != length:
        raise ValueError("it ends within a string")
    return data.decode(errors="replace")


def _length(file: BinaryIO) -> int:
    length = _unpack(file, "<Q")
    if length > _MAX_STRING:
        raise ValueError(f"it claims a string of {length} bytes")
    return length


def _unpack(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
