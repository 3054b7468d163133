"""What every engine does with the vectors of an Embed call before they leave."""

from __future__ import annotations

import numpy as np

from ollmlx.runner.errors import invalid
from ollmlx.runner.v1 import runner_pb2 as pb


def scale(table: np.ndarray, request: pb.EmbedRequest) -> np.ndarray:
    """Cut, scale and check vectors, shape (inputs, dimensions)."""
    if request.dimensions > table.shape[1]:
        raise invalid(
            f"dimensions must not be larger than the {table.shape[1]} of this model, got {request.dimensions}"
        )
    if not np.isfinite(table).all():
        raise invalid("embedding contains NaN or Inf values")
    if request.dimensions:
        table = table[:, : request.dimensions]
    if request.normalize or request.dimensions:
        table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return table
