"""The README's chart of predicted training steps, and its table of runs: ``python -m docs.step RESULT ...``.

Each RESULT is a ``benchmarks/results/gpu_program-*.json``. ``step.svg`` has a bar for each kind of training step in
them, and shows where its milliseconds go. The table is printed as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.gpu_program.report import read_result
from components.command import run_command
from components.errors import UserError
from components.files import write_whole
from docs.pictures import BLUE, GRAY, GREEN, ORANGE, OUT, svg

PARTS = {
    "matrix products": (("products",), BLUE, 1.0),
    "attention": (("attention",), ORANGE, 1.0),
    "elementwise": (("elementwise",), GREEN, 1.0),
    "sines, cosines, powers": (("recomputed",), GREEN, 0.7),
    "optimizers": (("update",), GRAY, 1.0),
    "other ranks and host": (("all_reduce", "gather", "waiting_for_host"), GRAY, 0.6),
}
"""Label, parts of a result, color and opacity of each piece of a bar."""


PHASES = {"train": "", "loop": "with its loop", "qat": "under late QAT"}
"""A run's kinds of training step, and what sets each apart."""

BETWEEN_RUNS = 0.4
"""Room between the bars of two runs, in bars."""


def draw_steps(results: Sequence[Mapping[str, Any]]) -> bytes:
    """Predicted steps as bars of their parts, as SVG; the first result's are on top."""
    rows: list[float] = []
    labels, steps = [], []
    for result in results:
        top = rows[-1] + 1 + BETWEEN_RUNS if rows else 0.0
        known = [(name, title) for name, title in PHASES.items() if name in result["predicted_ms"]]
        rows += [top + i for i in range(len(known))]
        labels += [title if i else f"{result['config']} {title}".strip() for i, (_, title) in enumerate(known)]
        steps += [result["predicted_ms"][name] for name, _ in known]
    figure = Figure(figsize=(9.5, 1.5 + 0.35 * rows[-1]), layout="constrained")
    axes = figure.add_subplot()
    for row, step in zip(rows, steps, strict=True):
        _draw_bar(axes, row, step)
    axes.set_yticks(rows, labels, color=GRAY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=GRAY)
    axes.spines["bottom"].set_color(GRAY)
    chips = " and ".join(sorted({result["chip"] for result in results}))
    axes.set_xlabel(f"predicted milliseconds of a training step on each {chips}", color=GRAY)
    axes.set_ylim(rows[-1] + 0.5, -0.5)
    drawn = {label: part for label, part in PARTS.items() if any(_width(step, part[0]) for step in steps)}
    legend = [Patch(color=color, alpha=opacity, label=label) for label, (_, color, opacity) in drawn.items()]
    figure.legend(
        handles=legend, loc="outside upper center", ncols=len(drawn), frameon=False, fontsize=8, labelcolor=GRAY
    )
    return svg(figure)


def _width(step: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(step[name] for name in names)


def _draw_bar(axes: Axes, row: float, step: Mapping[str, float]) -> None:
    left = 0.0
    for names, color, opacity in PARTS.values():
        width = _width(step, names)
        axes.barh(row, width, 0.8, left=left, color=color, alpha=opacity)
        if width > 0.04 * step["step"]:
            axes.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center", color="white", fontsize=8)
        left += width
    axes.text(left, row, f"  {step['step']:.1f}", va="center", color=GRAY, fontsize=9)


def runs_table(results: Sequence[Mapping[str, Any]]) -> str:
    """What is predicted of each run, as Markdown."""
    lines = [
        "| run | ms a step | steps | windows a second, each GPU | final score, s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        steps = [result["predicted_ms"][name]["step"] for name in PHASES if name in result["predicted_ms"]]
        run, rate = result["predicted_run"], result["predicted_windows_per_second"].get("score")
        cells = [
            f"`{result['config']}`",
            ", ".join(f"{step:.1f}" for step in steps),
            _number(run.get("steps")),
            _number(rate),
            _number(run.get("scoring_seconds")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def main(arguments: Sequence[str]) -> None:
    """Draw the results given on the command line, and print their table.

    Raises:
        UserError: One is no result, or has no training step.
    """
    parser = argparse.ArgumentParser(prog="python -m docs.step", description="Draw predicted training steps.")
    parser.add_argument("results", type=Path, nargs="+", help="files that benchmarks.gpu_program wrote")
    parser.add_argument("--out", type=Path, default=OUT, help="where step.svg goes (default: docs)")
    args = parser.parse_args(arguments)
    results = [_read(file) for file in args.results]
    write_whole(args.out / "step.svg", draw_steps(results))
    print(f"{runs_table(results)}\n\nDrawn: {args.out / 'step.svg'}")


def _read(file: Path) -> dict[str, Any]:
    result = read_result(file)
    if not PHASES.keys() & result["predicted_ms"].keys():
        raise UserError(f"{file} holds no training step; make it with benchmarks.gpu_program and a training pass.")
    return result


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
