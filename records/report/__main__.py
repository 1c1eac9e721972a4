"""``python -m records.report RUN [RUN ...]``: a run's page, or one page of several runs or of a sweep's seeds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from components.command import run_command
from components.errors import UserError
from records.report import REPORT, write_report
from records.runs import read_json
from records.sweep import STATE_NAME, SWEEP_NAME


def main(arguments: Sequence[str]) -> None:
    """Write the page of the runs named on the command line.

    Raises:
        UserError: A folder is neither a run's nor a sweep's, or the page cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m records.report", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run's folder, .../version_N, or a sweep's")
    parser.add_argument(
        "--out",
        type=Path,
        help="the page (default: report.html in the run's or sweep's folder, or the runs' common one)",
    )
    options = parser.parse_args(arguments)
    runs = list(dict.fromkeys(run.resolve() for folder in options.run for run in _runs_in(folder)))
    out = options.out
    if out is None and len(runs) > 1:
        out = Path(os.path.commonpath([folder.resolve() for folder in options.run])) / REPORT
    print(f"Report: {write_report(runs, out)}")


def _runs_in(folder: Path) -> Iterator[Path]:
    """A sweep's fits, in the order of their seeds; otherwise the folder itself."""
    states = sorted(folder.glob(f"seed*/{STATE_NAME}"), key=lambda path: int(path.parent.name.removeprefix("seed")))
    fits = [(path.parent, read_json(path, "run the seed with --again").get("fit")) for path in states]
    finished = [seed / fit for seed, fit in fits if fit is not None]
    if not finished and (states or (folder / SWEEP_NAME).exists()):
        raise UserError(f"No seed of the sweep {folder} has been trained; let the sweep go on.")
    yield from finished or [folder]


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
