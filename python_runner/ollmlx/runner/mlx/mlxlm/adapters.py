"""LoRA and DoRA adapters, put on and taken off a model in place, so that the weights of the base stay where
they are."""

from __future__ import annotations

import json
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
            load_adapters(self._model, str(path))
            mx.eval(self._model.parameters())
            self._model.eval()
        except Exception:
            self._model.update_modules(tree_unflatten(self._base))
            raise
        self.name = name


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
