"""Images in prompts: which models see, how an image gets into a prompt, and how that is computed.

mlx-vlm, which holds the models, is reached through the package `mlxvlm` only, and only where the extra is installed.
"""
