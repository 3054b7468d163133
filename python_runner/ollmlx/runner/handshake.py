"""The runner's announcement: one line of JSON on fd 4, written when the socket listens."""

import json
import os
import platform
from importlib import metadata

HANDSHAKE_FD = 4
PROTOCOL = 1
API = "ollmlx.runner.v1"

# Reported when installed; read from package metadata, so nothing is imported for it.
_REPORTED_PACKAGES = ("ollmlx", "mlx", "mlx-lm", "mlx-vlm", "xllamacpp", "grpcio")


def announce(engine: str, fd: int = HANDSHAKE_FD) -> None:
    """Tell the host that this runner listens, and close `fd`; raises OSError when `fd` is not open."""
    line = json.dumps(
        {"protocol": PROTOCOL, "api": API, "engine": engine, "pid": os.getpid(), "versions": versions()}
    )
    with os.fdopen(fd, "w", encoding="utf-8") as pipe:
        pipe.write(line + "\n")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a runner can do."""
    found = {"python": platform.python_version()}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
