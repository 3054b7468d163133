"""What holds for all tests: they see a clean environment, and leave the user's models alone."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _clean_environment() -> None:
    """No setting of the person who runs the tests reaches a server or a command under test."""
    for name in list(os.environ):
        if name.startswith(("OLLAMA_", "OLLMLX_")) and name != "OLLMLX_GO":
            del os.environ[name]
    # Tests run beside others: threads of llama.cpp that spin for each other would wait for those.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def plain_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's own operations, whatever an engine in this process has put in their place: what is compared with it."""
    import mlx.core as mx
    from mlx import nn

    from ollmlx.runner.mlx.mlxlm.cpu import attention, operations, weights

    monkeypatch.setattr(mx.fast, "rms_norm", operations.plain_rms_norm)
    monkeypatch.setattr(mx.fast, "rope", operations.plain_rope)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention.plain_attention)
    monkeypatch.setattr(nn.Embedding, "as_linear", weights.plain_as_linear)
