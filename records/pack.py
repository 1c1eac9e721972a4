"""``python -m records.pack RUN... --out FOLDER``: a submission folder, from finished runs of one configuration.

A RUN is the log folder of a ``fit`` (``.../lightning_logs/version_N``) or the folder of a sweep, which means all
of its finished seeds. The folder holds:

- ``README.md``: the method, the results of each seed, and how to reproduce them, all from the runs' own figures;
- ``submission.json``: the same for programs; scores are means over the seeds, all other figures are maxima;
- ``train_gpt.py``: one self-contained script (see `records.script`), and ``requirements.txt``, what it needs;
- for each seed ``train_seed<N>.log``, ``model_seed<N>.golf`` and ``run_seed<N>.json``, the run's own record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install

from components.artifact import MAX_BYTES
from components.command import run_command
from components.errors import UserError
from components.run_files import SUMMARY_NAME
from records.baseline import baseline_losses
from records.runs import Run, open_run, read_json
from records.script import build_script, clear_settings
from records.submission import SCRIPT_NAME, Credits, readme, requirements, submission
from records.sweep import SWEEP_NAME

SUBMISSION_NAME = "submission.json"
REQUIREMENTS_NAME = "requirements.txt"


def pack(runs: Sequence[Run], out: Path, credits: Credits, baseline: Sequence[float] = ()) -> dict[str, Any]:
    """Write the folder, completely or not at all, and return its ``submission.json``.

    Raises:
        UserError: the folder exists, the runs differ in their configuration or share a seed, or the script is too
            large.
    """
    if out.exists():
        raise UserError(f"{out} exists already; remove it or choose another --out.")
    runs = sorted(runs, key=lambda run: run.seed)
    settings = _common_settings(runs)
    script = build_script(runs[0].config.read_text(), max(run.artifact.stat().st_size for run in runs))
    facts = submission(runs, script.num_bytes, credits, settings, baseline)
    scratch = out.with_name(f".{out.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        (scratch / SCRIPT_NAME).write_text(script.text)
        (scratch / REQUIREMENTS_NAME).write_text(requirements())
        (scratch / SUBMISSION_NAME).write_text(json.dumps(facts, indent=2) + "\n")
        (scratch / "README.md").write_text(readme(facts, settings, script, runs))
        for run in runs:
            shutil.copyfile(run.log, scratch / f"train_seed{run.seed}.log")
            shutil.copyfile(run.artifact, scratch / f"model_seed{run.seed}{run.artifact.suffix}")
            shutil.copyfile(run.folder / SUMMARY_NAME, scratch / f"run_seed{run.seed}.json")
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return facts


def runs_of(folders: Sequence[Path]) -> list[Run]:
    """The finished runs in folders, each a run's or a sweep's.

    Raises:
        UserError: a folder is neither.
    """
    runs = []
    for folder in folders:
        if (folder / SWEEP_NAME).is_file():
            content = read_json(folder / SWEEP_NAME, "run the sweep again")
            # The sweep may have moved since.
            places = [Path(result["fit"]).parts[-4:] for result in content["seed_results"]]
            runs += [open_run(folder.joinpath(*parts)) for parts in places]
        else:
            runs.append(open_run(folder))
    return runs


def _common_settings(runs: Sequence[Run]) -> dict[str, Any]:
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"Two of the runs have the same seed ({', '.join(map(str, seeds))}); give each seed once.")
    every: list[dict[str, Any]] = [
        yaml.safe_load(clear_settings(yaml.safe_load(run.config.read_text()))) for run in runs
    ]
    for run, settings in zip(runs, every, strict=True):
        for section in every[0].keys() | settings.keys():
            if section != "seed_everything" and settings.get(section) != every[0].get(section):
                raise UserError(
                    f"The runs {runs[0].folder} and {run.folder} differ in their settings of {section}; pack runs of "
                    "one configuration."
                )
    return every[0]


def main(arguments: Sequence[str]) -> None:
    """Pack the runs given on the command line.

    Raises:
        UserError: see `pack`.
    """
    parser = argparse.ArgumentParser(prog="python -m records.pack", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="a fit's version_N folder, or a sweep's folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--author", required=True, help="your name")
    parser.add_argument("--github-id", required=True, help="your GitHub account")
    parser.add_argument("--name", default="", help="the submission's name (default: made from the model's size)")
    parser.add_argument("--blurb", default="", help="a sentence about it (default: made from the settings)")
    parser.add_argument("--track", default="10min_16mb", help="the challenge's track (default: %(default)s)")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    parser.add_argument("--date", default=today, help="the submission's date (default: today)")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        help="the baseline: a sweep.json, a submission.json, or the losses of its seeds in nats",
    )
    args = parser.parse_args(arguments)
    credits = Credits(args.author, args.github_id, args.name, args.blurb, args.date, args.track)
    facts = pack(runs_of(args.runs), args.out, credits, baseline_losses(args.baseline))
    print(
        f"Packed {args.out}: seeds {', '.join(map(str, facts['seeds']))}, {facts['val_bpb']:.6f} bits per byte, "
        f"{facts['bytes_total']:,} of {MAX_BYTES:,} bytes, {facts['bytes_code']:,} of them code. "
        f"Next: python -m records.audit {args.out}"
    )


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
