"""docs/PERFORMANCE_RESULTS.md: the table of the last full run, each figure beside its goal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import report
from .figures import Figure

_HEAD = """# Performance: results

Each figure beside its goal, as the command printed it. What is compared is told in [performance.md](performance.md).
A ratio is the median of rounds in turn; "range" tells its lowest and highest round, "beside" the medians of what it was
made of.
"""


def write(path: Path, command: str, machine: dict[str, str], figures: Sequence[Figure]) -> None:
    facts = "\n".join(f"- {key}: {value}" for key, value in machine.items())
    met = sum(f.met for f in figures)
    path.write_text(
        f"{_HEAD}\n    {command}\n\n{facts}\n\n{met} of {len(figures)} goals are met.\n\n{report.table(figures)}\n"
    )
