"""A model store as Ollama writes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def add_model(store: Path, name: str, config: dict[str, Any], layers: list[tuple[str, bytes]]) -> None:
    """Write the model `name` (of Ollama's own library, with its tag), whose layers are kinds and their contents."""

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        path = store / "blobs" / f"sha256-{digest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    written = [blob(f"application/vnd.ollama.image.{kind}", data) for kind, data in layers]
    own = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in written]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": blob(
            "application/vnd.docker.container.image.v1+json", json.dumps({**config, **own}).encode()
        ),
        "layers": written,
    }
    model, _, tag = name.partition(":")
    path = store / "manifests" / "registry.ollama.ai" / "library" / model / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
