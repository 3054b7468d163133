"""Quantizing a model with mlx-lm's own functions, written part by part."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils as mlx_utils
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, QUANT_RECIPES, mixed_quant_predicate_builder

# Most bytes of one file of the result, and with that of what memory holds of it.
_FILE_GIGABYTES = 1
# Bytes of the result between two looks at the progress callback.
_STEP_BYTES = 32 * 1024 * 1024
# What the modes of mlx can do; mlx itself accepts more in places and computes nonsense.
_AFFINE_BITS = (2, 3, 4, 5, 6, 8)
_AFFINE_GROUPS = (32, 64, 128)
_FIXED_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
_DEFAULT_BITS, _DEFAULT_GROUP = 4, 64
# Tensors of one module, which one operation computes together.
_PACKED = ("weight", "scales", "biases", "global_scale")


@dataclass(frozen=True)
class Scheme:
    """How weights are packed; raises ValueError for what mlx does not have."""

    mode: str
    bits: int = 0
    group_size: int = 0
    recipe: str = ""

    def __post_init__(self) -> None:
        if self.recipe and (self.recipe not in QUANT_RECIPES or self.mode != "affine"):
            raise ValueError(
                f"there is no recipe {self.recipe!r} for mode {self.mode!r}; recipes of mode affine are "
                + ", ".join(QUANT_RECIPES)
            )
        if self.mode in _FIXED_MODES:
            bits, group = _FIXED_MODES[self.mode]
            if self.bits not in (0, bits) or self.group_size not in (0, group):
                raise ValueError(f"{self.mode} always has {bits} bits and groups of {group}")
        elif self.mode != "affine":
            raise ValueError(f"there is no quantization mode {self.mode!r}")
        elif self.bits and self.bits not in _AFFINE_BITS:
            raise ValueError(f"weights cannot have {self.bits} bits; possible are {_AFFINE_BITS}")
        elif self.group_size and self.group_size not in _AFFINE_GROUPS:
            raise ValueError(f"groups cannot have {self.group_size} weights; possible are {_AFFINE_GROUPS}")

    def numbers(self, model: Any) -> tuple[int, int]:
        """Bits and group size for a model; of a recipe the bits that most layers get."""
        if self.mode in _FIXED_MODES:
            return _FIXED_MODES[self.mode]
        bits = int(self.recipe.split("_")[1]) if self.recipe else self.bits or _DEFAULT_BITS
        return bits, self.group_size or _fitting_group(model)


def _fitting_group(model: Any) -> int:
    """mlx-lm's default, or a smaller group where that reaches more of the weights: layers whose rows cannot be split
    into groups stay as they are."""
    widths = [
        (module.weight.shape[-1], module.weight.size)
        for _, module in model.named_modules()
        if hasattr(module, "to_quantized")
    ]

    def reached(group: int) -> int:
        return sum(size for width, size in widths if width % group == 0)

    smaller = min(_AFFINE_GROUPS)
    return smaller if reached(smaller) > reached(_DEFAULT_GROUP) else _DEFAULT_GROUP


class Plan:
    """A quantized model that is yet to be computed and written."""

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        weights = dict(tree_flatten(model.parameters()))
        self._config = config
        # mlx-lm reads a vision tower of few models only; for the others the configuration must not promise one.
        self._sees = "vision_tower" in getattr(model, "model", {})
        self._parameters = int(mlx_utils.get_total_parameters(model))
        self.bytes_total = sum(array.nbytes for array in weights.values())
        # In the order of the names that the model gives them: a module's tensors are together.
        self._shards = mlx_utils.make_shards(weights, _FILE_GIGABYTES)
        # An array that the model holds stays in memory when it has been computed.
        model.update(tree_map(lambda _: mx.array([]), model.parameters()))

    def write(self, output: Path, progress: Callable[[int], None]) -> Iterator[str]:
        """Write the files and yield the name of each when it is complete.

        `progress(done)` is called in bytes after each part; what it raises abandons the work.
        """
        count = len(self._shards)
        places: dict[str, str] = {}
        done = 0
        for i in range(count):
            name = f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
            shard, self._shards[i] = self._shards[i], {}
            for part in _parts(shard):
                mx.eval(part)
                done += sum(array.nbytes for array in part)
                progress(done)
            mx.save_safetensors(str(output / name), shard, metadata={"format": "mlx"})
            places.update(dict.fromkeys(shard, name))
            del shard, part
            mx.clear_cache()
            yield name
        index = {
            "metadata": {"total_size": self.bytes_total, "total_parameters": self._parameters},
            "weight_map": dict(sorted(places.items())),
        }
        (output / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))
        yield "model.safetensors.index.json"
        mlx_utils.save_config(
            dict(self._config), config_path=output / "config.json", keep_vision_config=self._sees
        )
        yield "config.json"


def _parts(shard: dict[str, mx.array]) -> Iterator[list[mx.array]]:
    """The arrays in groups of some size; those that one operation computes are not separated."""
    part: list[mx.array] = []
    module = None
    for name, array in shard.items():
        owner, _, leaf = name.rpartition(".")
        together = owner == module and leaf in _PACKED
        if part and not together and sum(a.nbytes for a in part) >= _STEP_BYTES:
            yield part
            part = []
        module = owner
        part.append(array)
    if part:
        yield part


def quantize(model: Any, config: dict[str, Any], scheme: Scheme) -> Plan:
    """Plan the quantization of a model that was built lazily. Raises ValueError if the scheme does not fit it."""
    bits, group_size = scheme.numbers(model)
    predicate = None
    if scheme.recipe:
        # Raises where the model has no layers of the names that recipes are written for.
        try:
            predicate = mixed_quant_predicate_builder(scheme.recipe, model, group_size)
        except ValueError:
            raise ValueError(
                f"{scheme.recipe} is for models with layers named down_proj, and this one has none; "
                "use int4 or int8"
            ) from None
    _cast(model, config)
    # It prints what it did.
    with contextlib.redirect_stdout(io.StringIO()):
        model, quantized = mlx_utils.quantize_model(
            model, config, group_size, bits, mode=scheme.mode, quant_predicate=predicate
        )
    if not any(name.endswith(".scales") for name, _ in tree_flatten(model.parameters())):
        raise ValueError(f"none of its layers can be split into groups of {group_size} weights")
    return Plan(model, quantized)


def _cast(model: Any, config: dict[str, Any]) -> None:
    """Give the weights the type that the configuration names, as mlx-lm's converter does."""
    wish = config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    if wish not in MODEL_CONVERSION_DTYPES:
        return
    dtype = getattr(mx, wish)
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def cast(name: str, array: mx.array) -> mx.array:
        return array.astype(dtype) if wanted(name) and mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(cast, model.parameters()))
