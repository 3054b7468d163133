"""Figures as a table for people and documents, as JSON and CSV for programs, and as a plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .figures import Figure


def line(figure: Figure) -> str:
    value = f"{figure.value:.3f}{figure.unit}"
    return (
        f"{'met ' if figure.met else 'MISS'} {value:>11} {figure.goal:>9}  {figure.question}: {figure.case}"
    )


def table(figures: Sequence[Figure]) -> str:
    """In Markdown, one row for each figure."""
    rows = ["| what | case | measured | goal | met | range | beside |", "| --- " * 7 + "|"]
    for figure in figures:
        detail = dict(figure.detail)
        low, high = detail.pop("lowest", None), detail.pop("highest", None)
        spread = f"{low:.2f}-{high:.2f}" if low is not None else ""
        beside = ", ".join(f"{key} {value:.4g}" for key, value in detail.items())
        rows.append(
            f"| {figure.question} | {figure.case} | {figure.value:.3g}{figure.unit} | {figure.goal} "
            f"| {'yes' if figure.met else '**no**'} | {spread} | {beside} |"
        )
    return "\n".join(rows)


def write(directory: Path, machine: dict[str, str], figures: Sequence[Figure]) -> list[Path]:
    """Write what was measured into `directory`; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = [asdict(f) | {"goal": f.goal, "met": f.met} for f in figures]
    files = [directory / "results.json", directory / "results.csv", directory / "results.md"]
    files[0].write_text(json.dumps({"machine": machine, "figures": entries}, indent=2) + "\n")
    with files[1].open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["question", "case", "value", "unit", "goal", "met", "detail"])
        for f in figures:
            writer.writerow(
                [f.question, f.case, f"{f.value:.5g}", f.unit, f.goal, f.met, json.dumps(f.detail)]
            )
    files[2].write_text(table(figures) + "\n")
    return files + _plot(directory, figures)


def _plot(directory: Path, figures: Sequence[Figure]) -> list[Path]:
    """A bar for each ratio, relative to its goal; nothing without matplotlib (the extra `bench`)."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [f for f in figures if f.goal != "-" and not f.unit]
    if not shown:
        return []
    figure, axes = pyplot.subplots(figsize=(11, 1 + 0.32 * len(shown)))
    labels = [f"{f.question}: {f.case} ({f.goal})" for f in shown]
    values = [f.value for f in shown]
    axes.barh(labels, values, color=["tab:green" if f.met else "tab:red" for f in shown])
    for row, shown_figure in enumerate(shown):
        goal = shown_figure.at_least if shown_figure.at_least is not None else shown_figure.at_most
        axes.plot([goal, goal], [row - 0.4, row + 0.4], color="black")
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("ratio (black: the goal)")
    axes.tick_params(labelsize=7)
    figure.tight_layout()
    path = directory / "results.svg"
    figure.savefig(path)
    pyplot.close(figure)
    return [path]
