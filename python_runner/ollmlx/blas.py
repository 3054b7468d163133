"""A tuned BLAS for MLX on Linux CPUs.

The mlx-cpu wheel links a reference BLAS of one thread and no SIMD. A tuned library that is loaded before it
takes over its cblas calls, which made prefill four and batched decode six times faster where it was measured.
Nothing is imported here but the standard library: a runner asks before anything else.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

# "0" leaves MLX with its own BLAS; a path names a library to use.
VARIABLE = "OLLMLX_BLAS"

_DIRECTORIES = (
    "/usr/lib/{machine}-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)
# Libraries with plain cblas names, best first. Those inside Python wheels have prefixed names and take
# nothing over.
_NAMES = (
    "openblas-pthread/libblas.so.3",
    "openblas-openmp/libblas.so.3",
    "openblas-serial/libblas.so.3",
    "libopenblas.so.0",
    "libopenblaso.so.0",
    "libopenblasp.so.0",
    "blis-pthread/libblas.so.3",
)

# Implementations of BLAS that use vector units and threads, as their files are named.
_TUNED = ("openblas", "mkl", "blis", "accelerate", "armpl", "nvpl")


def find() -> Path | None:
    """The tuned BLAS to put before MLX's own; None where there is none, none is wanted, or it is no help."""
    wish = os.environ.get(VARIABLE, "")
    if not sys.platform.startswith("linux") or wish == "0":
        return None
    if wish:
        return Path(wish) if _usable(Path(wish)) else None
    machine = platform.machine()
    candidates = (Path(d.format(machine=machine)) / name for d in _DIRECTORIES for name in _NAMES)
    return next((path for path in candidates if _usable(path)), None)


def _usable(path: Path) -> bool:
    """Whether a library loads here: a preloaded one that does not, for want of another library for example, would keep
    the process from starting at all."""
    if not path.is_file():
        return False
    if _is_preloaded(path):
        return True
    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _is_preloaded(path: Path) -> bool:
    return str(path) in os.environ.get("LD_PRELOAD", "").split(":")


def restart_with() -> None:
    """Start this process anew with the tuned BLAS loaded, unless that was done; file descriptors stay
    open."""
    library = find()
    if library is None or _is_preloaded(library):
        return
    environment = dict(os.environ)
    environment["LD_PRELOAD"] = ":".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    # With a thread for every core its waiting threads take the cores from the rest: over ten times slower was
    # measured.
    environment.setdefault("OPENBLAS_NUM_THREADS", str(max((os.cpu_count() or 1) - 1, 1)))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def in_use() -> str:
    """The BLAS that MLX computes with in this process, by the file that the symbol comes from."""
    if sys.platform == "darwin":
        return "Accelerate"
    # A preloaded library stands in the global scope, which the linker searches before MLX's own dependencies.
    everywhere = ctypes.CDLL(None)
    try:
        address = ctypes.cast(everywhere.cblas_sgemm, ctypes.c_void_p)
        info = _DlInfo()
        if everywhere.dladdr(address, ctypes.byref(info)) and info.file:
            return str(Path(os.fsdecode(info.file)).resolve())
    except AttributeError:
        pass
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    # The one in the wheel of MLX's backend; other packages bring libraries for themselves.
    files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "mlx" in line and "blas" in line}
    return ", ".join(sorted(files)) or "unknown"


def is_reference() -> bool:
    """Whether that is one without vector units and threads, for all that can be told."""
    # Of the wheel's own, not where it is installed: a user's name may be in that.
    name = in_use().lower().rpartition("/site-packages/")[2]
    return name != "unknown" and not any(tuned in name for tuned in _TUNED)


class _DlInfo(ctypes.Structure):
    """What dladdr(3) tells about an address."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )
