"""ollmlx: an Ollama-compatible local model server for MLX.

The server itself is a Go program that this package bundles (`_bin/ollmlx`) and starts (`_launcher`); the Go
program starts `ollmlx.runner`, one process for each loaded model. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
