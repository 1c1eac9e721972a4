"""The README's pictures, drawn from a finished run: ``python -m docs.pictures RUN``.

RUN is the log folder of a ``fit`` (``.../lightning_logs/version_N``). ``run.svg`` shows the run over time: the loss,
the learning-rate multiplier, and when each phase began. ``score.svg`` shows the path from text to score, with the
run's own figures.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.command import run_command
from components.files import write_whole
from records.runs import Run, open_run

OUT = Path(__file__).parent
STEP = re.compile(r"^step (\d+) train_loss ([\d.]+) elapsed ([\d.]+) s", re.MULTILINE)
VALIDATION = re.compile(r"^validation step (\d+) val_loss [\d.]+ val_bpb ([\d.]+)", re.MULTILINE)
SNAPSHOT = re.compile(r"^snapshot \d+ at step (\d+)", re.MULTILINE)
WARMDOWN = re.compile(r"^warm-down from step (\d+)", re.MULTILINE)
LATE_QAT = re.compile(r"^late QAT from step (\d+)", re.MULTILINE)
BLUE, ORANGE, GREEN, GRAY = "#2f6db5", "#c8641e", "#3c8d4f", "#666666"


def draw_run(run: Run) -> bytes:
    """A run over time, as SVG: training loss and bits per byte above, the learning-rate multiplier below."""
    log = run.log.read_text()
    budget = run.summary["max_wallclock_seconds"] or run.summary["wallclock_seconds"]
    steps = {int(step): (float(loss), float(seconds)) for step, loss, seconds in STEP.findall(log)}
    seconds_of = {step: seconds for step, (_, seconds) in steps.items()}

    def when(step: int) -> float:
        """Elapsed seconds at a step, taken from the nearest logged step."""
        return seconds_of[min(seconds_of, key=lambda logged: abs(logged - step))]

    starts = [(0.0, "constant rate")]
    starts += [(when(int(step)), "warm-down") for step in WARMDOWN.findall(log)]
    starts += [(when(int(step)), "late QAT") for step in LATE_QAT.findall(log)]
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ends = [start for start, _ in starts[1:]] + [budget]
    for i, ((start, name), end) in enumerate(zip(starts, ends, strict=True)):
        for axes in (above, below):
            axes.axvspan(start, end, color=(GRAY, BLUE, ORANGE)[i % 3], alpha=0.08, linewidth=0)
        above.text((start + end) / 2, 1.02, name, transform=above.get_xaxis_transform(), ha="center", color=GRAY)
    above.plot(list(seconds_of.values()), [loss for loss, _ in steps.values()], color=BLUE, linewidth=1)
    above.set_ylabel("training loss, nats per token", color=BLUE)
    bits = above.twinx()
    scored = [(when(int(step)), float(bpb)) for step, bpb in VALIDATION.findall(log)]
    bits.plot(*zip(*scored, strict=True), color=ORANGE, marker="o", markersize=4, linewidth=1)
    bits.plot([budget], [run.summary["val_bpb"]], color=ORANGE, marker="*", markersize=12, clip_on=False)
    bits.set_ylabel("bits per byte (star: the exported file)", color=ORANGE)
    _draw_rate(below, _rates(run), when, [int(step) for step in SNAPSHOT.findall(log)])
    above.set_xlim(0, budget)
    return svg(figure)


def _rates(run: Run) -> dict[int, float]:
    """The learning rate over its initial value at each logged step."""
    events = EventAccumulator(str(run.folder))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("lr/matrices")}
    return {step: rate / max(logged.values()) for step, rate in logged.items()}


def _draw_rate(axes: Axes, rates: dict[int, float], when: Callable[[int], float], snapshots: list[int]) -> None:
    axes.plot([when(step) for step in rates], list(rates.values()), color=GREEN, linewidth=1.5)
    axes.set(xlabel="seconds of training", ylabel="learning rate", ylim=(0, 1.15))
    if snapshots:
        axes.plot([when(step) for step in snapshots], [rates[step] for step in snapshots], "o", color=GREEN, ms=3)
        axes.annotate(
            f"{len(snapshots)} snapshots, averaged",
            (when(snapshots[0]), rates[snapshots[0]]),
            xytext=(8, 6),
            textcoords="offset points",
            color=GREEN,
        )


def draw_score(run: Run, settings: dict[str, Any]) -> bytes:
    """The path from text to score, as SVG, with a run's figures."""
    summary, data, scoring = run.summary, settings["data"], settings["scoring"]
    train = (
        ("text", "documents"),
        ("tokenizer", f"{settings['model']['vocab_size']:,} pieces"),
        ("shards", f"{summary['train_ids']:,} ids"),
        ("stream", f"{data['train_batch_tokens']:,} ids per step"),
        ("training", f"{summary['step_stop']:,} steps"),
        ("float weights", f"{summary['num_params']:,}"),
    )
    score = (
        ("bits per byte", f"{summary['val_bpb']:.4f}"),
        ("nats / ln 2 / bytes", f"{summary['bytes_scored']:,} bytes of text"),
        ("windows", f"{scoring['seq_len']:,} ids every {scoring['stride']}"),
        ("read back", "the file alone"),
        ("model.golf", f"{summary['bytes_model']:,} bytes"),
        ("storage rules", "int5, int6, int8, float16"),
    )
    figure = Figure(figsize=(9.5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.1, 6.0), ylim=(-0.25, 2.1))
    axes.axis("off")
    for row, boxes, color in ((1.2, train, BLUE), (0.0, score, ORANGE)):
        for column, (title, words) in enumerate(boxes):
            _draw_box(axes, column, row, title, words, color)
            if column < len(boxes) - 1:
                ends = ((column + 0.88, row + 0.35), (column + 1.0, row + 0.35))
                _draw_arrow(axes, *(ends if color == BLUE else ends[::-1]))
    _draw_arrow(axes, (5.44, 1.18), (5.44, 0.72))
    return svg(figure)


def _draw_box(axes: Axes, column: int, row: float, title: str, words: str, color: str) -> None:
    shape = FancyBboxPatch((column + 0.03, row), 0.82, 0.7, boxstyle="round,pad=0.02", fc="white", ec=color, lw=1.3)
    axes.add_patch(shape)
    axes.text(column + 0.44, row + 0.45, title, ha="center", va="center", fontsize=9.5, color=color)
    axes.text(column + 0.44, row + 0.2, words, ha="center", va="center", fontsize=7.2, color=GRAY)


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GRAY, "lw": 1.2})


def svg(figure: Figure) -> bytes:
    """A figure's SVG; the same figure gives the same bytes."""
    file = io.BytesIO()
    # Without a date and with a fixed salt for its ids.
    with matplotlib.rc_context({"svg.hashsalt": "golf"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def main(arguments: Sequence[str]) -> None:
    """Draw both pictures of the run given on the command line.

    Raises:
        UserError: it is not a finished fit.
    """
    parser = argparse.ArgumentParser(prog="python -m docs.pictures", description="Draw the README's pictures of a run.")
    parser.add_argument("run", type=Path, help="the version_N folder of a finished fit")
    parser.add_argument("--out", type=Path, default=OUT, help="where run.svg and score.svg go (default: docs)")
    args = parser.parse_args(arguments)
    run = open_run(args.run)
    write_whole(args.out / "run.svg", draw_run(run))
    write_whole(args.out / "score.svg", draw_score(run, yaml.safe_load(run.config.read_text())))
    print(f"Drawn: {args.out / 'run.svg'}, {args.out / 'score.svg'}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
