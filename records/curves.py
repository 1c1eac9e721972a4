"""The seeds' curves in one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from components.files import write_whole
from records.train_log import read_log


def draw_curves(logs: Mapping[int, Path], path: Path) -> None:
    """Write a PNG of training loss and validation bits per byte by step, one line per seed.

    Args:
        logs: each seed's train.log.
        path: where the picture goes.

    Raises:
        UserError: a log cannot be read.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed, file in logs.items():
        log = read_log(file)
        left.plot(list(log.losses), list(log.losses.values()), linewidth=1, label=f"seed {seed}")
        [line] = right.plot(
            list(log.validations), list(log.validations.values()), marker=".", linewidth=1, label=f"seed {seed}"
        )
        if log.step_stop is not None and log.val_bpb is not None:
            right.plot([log.step_stop], [log.val_bpb], marker="*", linestyle="none", color=line.get_color())
    left.set(xlabel="optimizer step", ylabel="nats per token", title="training loss")
    right.set(xlabel="optimizer step", ylabel="bits per byte", title="validation (star: the exported file)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())
