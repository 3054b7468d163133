"""Caches as arrays and a description of how they belong together, for prefixes that are kept in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

# What may be made again from a file: classes whose state is arrays and numbers, and nothing else.
_CLASSES = {c.__name__: c for c in (mlx_cache.KVCache, mlx_cache.RotatingKVCache, mlx_cache.ArraysCache)}
_LIST = mlx_cache.CacheList.__name__

# Names of types in safetensors files.
_DTYPES = {
    mx.bool_: "BOOL", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16", mx.int16: "I16", mx.uint32: "U32",
    mx.int32: "I32", mx.uint64: "U64", mx.int64: "I64", mx.float16: "F16", mx.bfloat16: "BF16", mx.float32: "F32",
}  # fmt: skip


class CacheCodec:
    """Takes caches apart and puts them together again. Used on the engine's thread."""

    def describe(self, caches: list[Any]) -> tuple[str, list[mx.array]]:
        """The structure of caches as JSON, and their arrays in the order in which it refers to them.

        Raises ValueError for a cache whose class is not known to be made of arrays and numbers.
        """
        arrays: list[mx.array] = []
        structure = [_describe(c, arrays) for c in caches]
        return json.dumps(structure), arrays

    def restore(self, structure: str, arrays: list[mx.array]) -> list[Any]:
        """The caches that `describe` took apart; raises ValueError, KeyError or TypeError for a structure that is none
        of its making."""
        return [_restore(entry, arrays) for entry in json.loads(structure)]

    def header(self, array: mx.array) -> dict[str, Any]:
        """Type and shape as a safetensors header has them."""
        return {"dtype": _DTYPES[array.dtype], "shape": list(array.shape)}

    def data(self, array: mx.array) -> memoryview:
        """The bytes of an array, without a copy where it is contiguous."""
        flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
        mx.eval(flat)
        return memoryview(flat)

    def load(self, path: Path) -> dict[str, mx.array]:
        arrays = mx.load(str(path), format="safetensors")
        mx.eval(list(arrays.values()))
        return arrays


def identity(model: Any, device: str) -> dict[str, str]:
    """All besides the model's files that decides whether a stored cache fits."""
    dtypes = {str(a.dtype) for _, a in tree_flatten(model.parameters())}
    return {
        "mlx": mx.__version__,
        "mlx-lm": mlx_lm.__version__,
        "library": getattr(model, "library", "mlx-lm"),
        "device": device,
        "dtypes": ",".join(sorted(dtypes)),
    }


def _describe(cache: Any, arrays: list[mx.array]) -> list[Any]:
    if type(cache) is mlx_cache.CacheList:
        return [_LIST, [_describe(c, arrays) for c in cache.caches]]
    if _CLASSES.get(type(cache).__name__) is not type(cache):
        raise ValueError(f"caches of class {type(cache).__name__} are not kept in files")
    return [type(cache).__name__, _flatten(cache.state, arrays)]


def _flatten(value: Any, arrays: list[mx.array]) -> Any:
    """Arrays become {"array": position}, tuples lists; the rest is JSON as it is."""
    if isinstance(value, mx.array):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, (tuple, list)):
        return [_flatten(v, arrays) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a cache holds a {type(value).__name__}")


def _restore(entry: list[Any], arrays: list[mx.array]) -> Any:
    name, state = entry
    if name == _LIST:
        return mlx_cache.CacheList(*(_restore(e, arrays) for e in state))
    return _CLASSES[name].from_state(_unflatten(state, arrays))


def _unflatten(value: Any, arrays: list[mx.array]) -> Any:
    if isinstance(value, dict):
        return arrays[value["array"]]
    if isinstance(value, list):
        return [_unflatten(v, arrays) for v in value]
    return value
