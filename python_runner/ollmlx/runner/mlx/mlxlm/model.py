"""A model in memory: device, configuration, tokenizer, weights, and what its KV cache allows."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils as mlx_utils
import psutil
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ollmlx.runner.mlx.mlxlm import cpu, mixed, repairs

# Weights read between two looks at the progress callback, in bytes.
_LOAD_STEP_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with its tokenizer and configuration (config.json, eos from
    generation_config.json)."""

    model: Any
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    # Of a model that can be shown images: its mlxvlm.Processor.
    processor: Any = None
    # Of one that cannot: what to tell those who try.
    blindness: str = ""


def select_device(wish: str) -> str:
    """Make the device of LoadRequest.device the default; returns "metal", "cuda" or "cpu".

    Raises ValueError when the wish cannot be met.
    """
    if wish == "cpu":
        mx.set_default_device(mx.cpu)
    elif wish == "gpu" and mx.default_device() != mx.gpu:
        raise ValueError("device gpu was asked for, but this build of MLX has no GPU backend")
    if mx.default_device() != mx.gpu:
        cpu.install()
        warm_up_device()
    mixed.install()
    repairs.install()
    if mx.default_device() != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def warm_up_device() -> None:
    """Have compiled what is compiled once for a machine, and needs no model."""
    if mx.default_device() != mx.gpu:
        cpu.warm_up()


@contextlib.contextmanager
def _exits_as_errors() -> Iterator[None]:
    """mlx-lm's code of a model ends the process where a package that it needs is missing."""
    try:
        yield
    except SystemExit as err:
        missing = err.__context__
        name = missing.name if isinstance(missing, ImportError) else None
        if name is None:
            raise ValueError("mlx-lm ends the process for models of this type") from err
        raise ImportError(
            f"for models of this type mlx-lm needs the Python package {name}, which is not installed"
        ) from err


@_exits_as_errors()
def load_tokenizer(path: Path, config: dict[str, Any]) -> TokenizerWrapper:
    with _without_code(path) as plain:
        return mlx_utils.load_tokenizer(plain, eos_token_ids=config.get("eos_token_id"))


@contextlib.contextmanager
def _without_code(path: Path) -> Iterator[Path]:
    """The model's directory, or one like it whose tokenizer_config.json asks for no code of the model's own.

    transformers refuses such a tokenizer also where tokenizer.json is all that it takes.
    """
    file = path / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "auto_map" not in settings or not (path / "tokenizer.json").is_file():
        yield path
        return
    del settings["auto_map"]
    with tempfile.TemporaryDirectory(prefix="ollmlx-tokenizer-") as directory:
        plain = Path(directory)
        for other in path.iterdir():
            if other.name != file.name:
                (plain / other.name).symlink_to(other.absolute())
        (plain / file.name).write_text(json.dumps(settings), encoding="utf-8")
        yield plain


def load_config(path: Path) -> dict[str, Any]:
    return mlx_utils.load_config(path)


def load_weights(path: Path, progress: Callable[[int, int], None]) -> Any:
    """Build the model and read its weights part by part.

    `progress(done, total)` is called in bytes after each part; what it raises abandons the load.
    """
    model, _ = build(path)
    read_weights(model, progress)
    return model


@_exits_as_errors()
def build(path: Path) -> tuple[Any, dict[str, Any]]:
    """The model with weights that are read when they are first used, and its configuration."""
    model, config = mlx_utils.load_model(
        path, lazy=True, strict=True, trust_remote_code=False, get_model_classes=_classes_for(path)
    )
    repairs.refuse_writes_beyond_logits(model, config.get("vocab_size", 0))
    return model, config


def read_weights(model: Any, progress: Callable[[int, int], None]) -> None:
    """Read the weights of a model that was built lazily, part by part; `progress` as in load_weights."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(a.nbytes for a in arrays)
    done, part, part_bytes = 0, [], 0
    progress(0, total)
    for array in arrays:
        part.append(array)
        part_bytes += array.nbytes
        if part_bytes < _LOAD_STEP_BYTES:
            continue
        mx.eval(part)
        done, part, part_bytes = done + part_bytes, [], 0
        progress(done, total)
    mx.eval(part)
    progress(total, total)
    model.eval()


def _classes_for(path: Path) -> Callable[..., tuple[type, type]]:
    """Classes for mlx-lm's load_model, which also take a checkpoint of the model without its output layer.

    Embedding models are saved that way: names lack the prefix "model.", and there is no lm_head.
    """
    names = {name for file in path.glob("model*.safetensors") for name in mx.load(str(file))}
    if not any(name.startswith(("embed_tokens.", "layers.")) for name in names):
        return mlx_utils._get_classes

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        model_class, arguments_class = mlx_utils._get_classes(config)

        class WithoutOutput(model_class):
            def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
                weights = {f"model.{name}": array for name, array in weights.items()}
                return super().sanitize(weights) if hasattr(super(), "sanitize") else weights

        config["tie_word_embeddings"] = True
        return WithoutOutput, arguments_class

    return classes


def wide_bytes(model: Any) -> int:
    """Bytes of the weights when all are float32 and none is quantized."""
    return parameter_count(model) * 4


def prepare_weights(model: Any, wide: bool) -> None:
    """Store the weights as a CPU multiplies them fast, if they are to be `wide` in float32 and not quantized."""
    cpu.widen(model, wide)
    cpu.turn(model)
    # The weights as they were read are of no more use.
    release_memory()


def weight_bytes(model: Any) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def parameter_count(model: Any) -> int:
    """Parameters of the model, packed quantized weights counted as what they stand for."""
    return int(mlx_utils.get_total_parameters(model))


def limit_wired_memory(model: Any) -> None:
    """Wire the weights and no more.

    mlx-lm wires the whole recommended working set; with KV caches that come and go this has panicked macOS
    kernels (mlx issue 3186). Weights are what every step reads, so they alone are kept resident.
    """
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended:
        mx.set_wired_limit(min(weight_bytes(model), int(recommended)))


@dataclass(frozen=True)
class Device:
    """What MLX computes on by default. The size is 0 where the device has no memory of its own, or none is told."""

    kind: str
    total_bytes: int
    unified: bool


def describe_device() -> Device:
    if mx.default_device() != mx.gpu:
        return Device("cpu", 0, True)
    info = mx.device_info()
    if mx.metal.is_available():
        # More than this cannot be used without the system pushing it out again.
        total = info.get("max_recommended_working_set_size", 0)
        return Device("metal", int(total), True)
    return Device("cuda", int(info.get("total_memory", 0)), False)


def free_device_bytes() -> int:
    """Free memory of a device that has its own."""
    return int(mx.device_info(mx.gpu).get("free_memory", 0))


def available_bytes(device: str) -> int:
    """Memory that new arrays could have: what is free, and what the allocator keeps."""
    free = free_device_bytes() if device == "cuda" else psutil.virtual_memory().available
    return free + mx.get_cache_memory()


def memory() -> tuple[int, int, int]:
    """Bytes held by arrays now, at most so far, and in the allocator's pool."""
    return mx.get_active_memory(), mx.get_peak_memory(), mx.get_cache_memory()


# glibc keeps freed memory for itself, hundreds of megabytes after weights were exchanged; other C libraries have
# no such function.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def release_memory() -> None:
    """Give back what dropped objects held; without the collection the old arrays stay reachable."""
    gc.collect()
    mx.clear_cache()
    if _malloc_trim is not None:
        _malloc_trim(0)
