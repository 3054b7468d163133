"""The one package that touches mlx-vlm, which is installed with the extra `vision` only.

mlx-vlm is pinned exactly, as mlx-lm is; tests/runner/test_mlxvlm_contract.py holds what this package relies on.
Importing it imports mlx-vlm, which takes seconds.

Of mlx-vlm come the models (vision tower and language model), and the processors that turn images into pixels and
marks in a prompt into the tokens they stand for. Its generators, its server and whatever reads files by path or
address are not used.
"""

from ollmlx.runner.mlx.mlxvlm.image_prompt import ImagePrompt
from ollmlx.runner.mlx.mlxvlm.model import load_model
from ollmlx.runner.mlx.mlxvlm.processor import Processor, load_processor
from ollmlx.runner.mlx.mlxvlm.units import Units

__all__ = ["ImagePrompt", "Processor", "Units", "load_model", "load_processor"]
