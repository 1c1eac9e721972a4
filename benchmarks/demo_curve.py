"""The demo's score by how long it trains: ``python -m benchmarks.demo_curve [--seconds 90 180 360 720]``.

Each budget is a whole run of the demo, with every phase but the momentum's warm-up in proportion. The picture,
``docs/demo.svg``, shows the exported files' bits per byte beside what compressors take for the same text, and where the
curve first passes below each of them. It takes half an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common import save, table
from components.command import run_command
from components.files import write_whole
from datamodules.compressors import bits_per_byte, read_text
from datamodules.corpus import build_corpus
from demo import DATA, run
from docs.pictures import BLUE, GRAY, ORANGE, svg

RUNS = Path("runs/demo_curve")
PICTURE = Path(__file__).parents[1] / "docs" / "demo.svg"
SECONDS = (90, 180, 360, 720)
LINE_OF_TEXT = 0.05
"""Room for a rival's label, in bits per byte; a rival closer below another has its label below its line."""


def crossing(scores: Mapping[float, float], rival: float) -> float | None:
    """Seconds of training after which a score falls to a rival's, linear in the logarithm of the seconds.

    Args:
        scores: Bits per byte by seconds of training, two or more.
        rival: The rival's bits per byte.

    Returns:
        The seconds of the first crossing; None if the scores do not cross the rival's.
    """
    for (before, above), (after, below) in pairwise(sorted(scores.items())):
        if above >= rival > below:
            share = (above - rival) / (above - below)
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return None


def draw(scores: Mapping[float, float], rivals: Mapping[str, float]) -> bytes:
    """The curve and its rivals, as SVG."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.add_subplot()
    times = sorted(scores)
    axes.set_xscale("log")
    axes.plot(times, [scores[time] for time in times], color=BLUE, marker="o")
    for time in times:
        axes.annotate(f"{scores[time]:.3f}", (time, scores[time]), (4, 6), textcoords="offset points", color=BLUE)
    for name, bits in rivals.items():
        axes.axhline(bits, color=GRAY, linewidth=1, linestyle="--")
        is_upper = not any(bits < other < bits + LINE_OF_TEXT for other in rivals.values())
        label = f"{name}: {bits:.3f}"
        beside = axes.get_yaxis_transform()
        axes.text(1.01, bits, label, transform=beside, va="bottom" if is_upper else "top", color=GRAY)
        passed = crossing(scores, bits)
        if passed is not None:
            axes.plot([passed], [bits], color=ORANGE, marker="o", markersize=9, fillstyle="none")
            axes.annotate(
                f"after {passed:.0f} s", (passed, bits), (0, -14), textcoords="offset points", ha="right", color=ORANGE
            )
    axes.set_xticks(times, [f"{time:g}" for time in times])
    axes.minorticks_off()
    axes.set(xlabel="seconds of training", ylabel="bits per byte of the exported file")
    return svg(figure)


def main(arguments: Sequence[str]) -> None:
    """Train for each budget, and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo_curve", description="Draw the demo's bits per byte by its seconds of training."
    )
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        default=SECONDS,
        help="seconds of training of each run (default: %(default)s)",
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the picture to draw (default: docs/demo.svg)")
    args = parser.parse_args(arguments)
    build_corpus(DATA)
    fits = {seconds: run("fit", RUNS, f"--clock.max_seconds={seconds}") for seconds in args.seconds}
    scores = {seconds: fit["val_bpb"] for seconds, fit in fits.items()}
    text = read_text(DATA, "val", next(iter(fits.values()))["tokens_scored"] + 1)
    rivals = bits_per_byte(text, read_text(DATA, "train"))
    rows = [(f"{seconds:g} s", fit["step_stop"], f"{scores[seconds]:.4f}") for seconds, fit in fits.items()]
    rows += [(name, "", f"{bits:.4f}") for name, bits in rivals.items()]
    print(table(("training", "steps", "bits per byte"), rows))
    write_whole(args.picture, draw(scores, rivals))
    save("demo_curve", {"steps": {s: fit["step_stop"] for s, fit in fits.items()}, "scores": scores, "rivals": rivals})


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
