"""A measured figure beside its goal, and what a run says it was measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil

from ollmlx import blas


@dataclass(frozen=True)
class Figure:
    """One ratio or time; `at_least` or `at_most` is its goal."""

    question: str
    case: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""
    # Range of the rounds, absolute numbers: what the value can be read by.
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}{self.unit}"
        if self.at_most is not None:
            return f"<= {self.at_most:g}{self.unit}"
        return "-"


def median_ratio(over: Sequence[float], under: Sequence[float]) -> tuple[float, dict[str, float]]:
    """Median of the ratios of rounds measured in turn, and their range."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return statistics.median(ratios), {"lowest": min(ratios), "highest": max(ratios)}


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def peak_resident(process: psutil.Process) -> int:
    """The most memory that a process has had since its start; what it has now where the system does not say."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return process.memory_info().rss


def machine() -> dict[str, str]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlx": metadata.version("mlx"),
        "mlx-lm": metadata.version("mlx-lm"),
        "blas": blas.find().name if blas.find() else "of the mlx wheel",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
    }
