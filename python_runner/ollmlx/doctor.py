"""The Python half of `ollmlx doctor`: does MLX work here, and how well?

Every fact is looked up on its own, so that one broken library costs one line and not the report.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ollmlx import blas

PACKAGES = ("mlx", "mlx-lm", "xllamacpp", "transformers", "grpcio", "protobuf", "huggingface-hub", "numpy")

# On Linux each backend brings the same file, mlx/lib/libmlx.so: of two installed ones the later has overwritten
# the earlier, and removing either breaks the other.
BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")


@dataclass
class Report:
    """What was found. `problems` keep models from running, `hints` would make them run better."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        width = max(map(len, self.facts), default=0) + 4
        lines = ["Python"]
        lines += [f"  {name.replace('_', ' '):<{width}}{value}" for name, value in self.facts.items()]
        lines += [f"  problem: {text}" for text in self.problems]
        lines += [f"  hint: {text}" for text in self.hints]
        return "\n".join(lines)


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def examine() -> Report:
    report = Report()
    _examine_interpreter(report)
    _examine_packages(report)
    _examine_memory(report)
    _examine_mlx(report)
    _examine_gguf(report)
    return report


def _examine_interpreter(report: Report) -> None:
    report.facts["python"] = f"{platform.python_version()} ({sys.executable})"
    report.facts["system"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    report.facts["cpus"] = os.cpu_count() or 1


def _examine_packages(report: Report) -> None:
    for package in PACKAGES:
        report.facts[package] = installed(package) or "not installed"
    for module, package in (("mlx_lm", "mlx-lm"), ("grpc", "grpcio")):
        _import(report, module, package)
    backends = [f"{name} {version}" for name in BACKENDS if (version := installed(name))]
    if platform.system() != "Linux":
        return
    report.facts["mlx_backend"] = ", ".join(backends) or "none"
    if not backends:
        report.problems.append("MLX has no backend: run `pip install 'mlx[cpu]'`")
    if len(backends) > 1:
        report.problems.append(
            f"{' and '.join(backends)} overwrite each other's files: uninstall them all, then reinstall one"
        )


def _import(report: Report, module: str, package: str) -> Any | None:
    """Import a module; a library that cannot be loaded is a problem, not a crash of the examination."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        report.problems.append(
            f"{package} cannot be imported ({type(error).__name__}: {error}):"
            f" run `{sys.executable} -m pip install --force-reinstall {package}`"
        )
        return None


def _examine_memory(report: Report) -> None:
    psutil = _import(report, "psutil", "psutil")
    if psutil is None:
        return
    memory = psutil.virtual_memory()
    report.facts["memory"] = f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available"


def _examine_mlx(report: Report) -> None:
    mx = _import(report, "mlx.core", "mlx")
    if mx is None:
        return
    try:
        # Not only loaded but able to compute: a wrong backend fails here.
        total = mx.sum(mx.ones((8, 8)) @ mx.ones((8, 8))).item()
        if total != 512:
            report.problems.append(f"MLX computes wrongly: got {total}, want 512")
        device = mx.default_device()
        info = mx.device_info() if hasattr(mx, "device_info") else {}
    except Exception as error:
        report.problems.append(f"MLX cannot compute: {type(error).__name__}: {error}")
        return
    name = info.get("device_name")
    report.facts["device"] = f"{device}, {name}" if name else str(device)
    on_cpu = device.type == mx.DeviceType.cpu
    if not on_cpu:
        return
    report.facts["blas"] = blas.in_use()
    if blas.is_reference():
        report.hints.append(
            "MLX computes with a reference BLAS, which is slow. Runners put a tuned one before it where they find"
            " one, which is several times faster; on Debian and Ubuntu: `apt-get install libopenblas0`"
        )


# What decides how fast llama.cpp multiplies on x86: as it names them, and as Linux does.
_WIDE_UNITS = {
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AVX_VNNI": "avx_vnni",
    "AMX_INT8": "amx_int8",
}


def _examine_gguf(report: Report) -> None:
    """Can GGUF models run, and does their engine use what this CPU has?"""
    if installed("xllamacpp") is None:
        report.hints.append("GGUF models cannot run: install their engine with `pip install 'ollmlx[gguf]'`")
        return
    library = _import(report, "xllamacpp", "xllamacpp")
    if library is None:
        return
    uses = set(library.get_system_info().replace("|", " ").replace("= 1", "").split())
    report.facts["gguf_engine"] = " ".join(sorted(uses - {"CPU", ":"}))
    report.facts["gguf_device"] = ", ".join(d["description"] for d in library.get_device_info())
    missing = unused_units(uses, _cpu_flags())
    if missing:
        report.hints.append(
            f"the installed xllamacpp does not use {', '.join(missing)} of this CPU. llama.cpp built for the machine"
            " computed prompts of Q4_0 models 1.5 times as fast where it was measured, of others little faster"
            f" (docs/gguf.md). To build it: `{native_build(installed('xllamacpp'))}` (needs git, a C++ compiler, CMake"
            " and Rust)"
        )


def native_build(version: str) -> str:
    """The command that builds the same version from its source, for this machine: its build does that by itself."""
    source = f"xllamacpp @ git+https://github.com/xorbitsai/xllamacpp@v{version}"
    return f'{sys.executable} -m pip install --force-reinstall --no-deps "{source}"'


def unused_units(uses: set[str], flags: set[str]) -> list[str]:
    """Vector units that the CPU has and the library was not built for, as llama.cpp names them."""
    return [name for name, flag in _WIDE_UNITS.items() if flag in flags and name not in uses]


def _cpu_flags() -> set[str]:
    """Features of the CPU as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}
