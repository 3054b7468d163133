#!/usr/bin/env bash
# Which is faster on this machine, MLX or GGUF? One command answers; --help tells the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m scripts.bench.formats "$@"
