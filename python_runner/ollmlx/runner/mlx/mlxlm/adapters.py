"""LoRA and DoRA adapters, put on and taken off a model in place, so that the weights of the base stay where
they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import load_adapters

# Adapters are untrusted files: their rank decides how much memory is allocated before their weights are
# looked at.
_MAX_RANK = 1024


class AdapterSwitch:
    """Which adapter a model wears. Only for the time between two batches: all rows share the model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # Layers as they are without any adapter.
        self._base = tree_flatten(model.leaf_modules(), is_leaf=lambda m: hasattr(m, "parameters"))
        self.name = ""

    def wear(self, name: str, path: Path) -> None:
        """Take off what is on and put on the adapter in `path`, or none if `name` is empty.

        Raises ValueError that says what is wrong with the adapter; the model is the bare base then.
        """
        if name == self.name:
            return
        self._model.update_modules(tree_unflatten(self._base))
        self.name = ""
        if not name:
            return
        check(path)
        try:
            _put_on(self._model, path)
            mx.eval(self._model.parameters())
            self._model.eval()
        except Exception:
            self._model.update_modules(tree_unflatten(self._base))
            raise
        finally:
            # New layers draw from MLX's generator what the adapter's weights replace. Nothing asks for its state after
            # that, and without being asked it remembers every draw there ever was.
            mx.eval(mx.random.state)
        self.name = name


def try_on(model: Any, path: Path) -> None:
    """Put the adapter in `path` on a model that was built lazily, to see whether it fits; no weights are read.

    Raises ValueError that says what is wrong with the adapter.
    """
    check(path)
    _put_on(model, path)


def _put_on(model: Any, path: Path) -> None:
    """Put an adapter on a model. Nothing is computed yet, so that what is allocated is what the adapter has: one that
    configures layers for which it has no weights would take memory for all of them."""
    load_adapters(model, str(path))
    given = mx.load(str(path / "adapters.safetensors"))
    wanted = [
        name
        for name, _ in tree_flatten(model.parameters())
        if name.rpartition(".")[2] in ("lora_a", "lora_b")
    ]
    missing = [name for name in wanted if name not in given]
    if missing or not wanted:
        raise ValueError(
            f"its configuration names {len(wanted)} matrices and its weights lack {len(missing)} of them"
            + (f", for example {missing[0]}" if missing else "")
        )


def check(path: Path) -> None:
    """Refuse an adapter whose configuration cannot be used; raises ValueError."""
    if not (path / "adapters.safetensors").is_file():
        if (path / "adapter_model.safetensors").is_file():
            raise ValueError("it is in PEFT form (adapter_model.safetensors); convert it to MLX form first")
        raise ValueError("it has no adapters.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ValueError(f"its fine_tune_type is {kind!r}, and only lora and dora are adapters")
    rank = (config.get("lora_parameters") or {}).get("rank")
    if not isinstance(rank, int) or not 0 < rank <= _MAX_RANK:
        raise ValueError(f"its rank is {rank!r}, and must be between 1 and {_MAX_RANK}")


# What PEFT calls the parts of an adapter's layer, and what mlx-lm does. Its matrices are the other way round.
_PEFT_PARTS = {
    ".lora_A.weight": ".lora_a",
    ".lora_B.weight": ".lora_b",
    ".lora_magnitude_vector": ".m",
    ".lora_magnitude_vector.weight": ".m",
}
_PEFT_PREFIX = "base_model.model."
# Settings of PEFT under which an adapter is more than its two matrices, and the values that say that it is not.
_PEFT_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal"),
}


def convert_peft(path: Path, output: Path) -> list[str]:
    """Write the PEFT adapter in `path` in the form of mlx-lm into `output`; returns the files' names.

    Raises ValueError for adapters that mlx-lm cannot express.
    """
    config = json.loads((path / "adapter_config.json").read_text())
    for setting, plain in _PEFT_PLAIN.items():
        if config.get(setting) not in plain:
            raise ValueError(
                f"its {setting} is {config.get(setting)!r}; only plain LoRA and DoRA adapters of PEFT can be used"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not 0 < rank <= _MAX_RANK or not isinstance(alpha, int | float):
        raise ValueError(f"its r is {rank!r} and its lora_alpha {alpha!r}; both must be positive numbers")
    weights = {}
    for name, array in mx.load(str(path / "adapter_model.safetensors")).items():
        part = next((p for p in _PEFT_PARTS if name.endswith(p)), None)
        if part is None:
            raise ValueError(f"its tensor {name} is no part of a LoRA or DoRA layer")
        module = name.removeprefix(_PEFT_PREFIX).removesuffix(part)
        weights[module + _PEFT_PARTS[part]] = array.T if array.ndim == 2 else array
    if not weights:
        raise ValueError("its adapter_model.safetensors holds no tensors")
    modules = sorted({name.rpartition(".")[0] for name in weights})
    parameters = {
        "rank": rank,
        "scale": alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        "dropout": 0.0,
        # Full names: an adapter may have some layers of a model and not others.
        "keys": modules,
    }
    mx.save_safetensors(str(output / "adapters.safetensors"), weights, metadata={"format": "mlx"})
    written = {
        "fine_tune_type": "dora" if config.get("use_dora") else "lora",
        "num_layers": len(modules),
        "lora_parameters": parameters,
    }
    (output / "adapter_config.json").write_text(json.dumps(written, indent=4))
    return ["adapters.safetensors", "adapter_config.json"]
