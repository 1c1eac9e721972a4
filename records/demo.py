"""``make demo-record``: a record attempt at demo scale, from its seeds to an audited folder whose script runs alone.

``python -m records.demo --rung NAME`` does the same for a later record of the ladder, with one seed and 40 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.command import run_command
from components.run_files import RUNS_NAME, SUMMARY_NAME
from datamodules.corpus import build_corpus
from records import audit, pack, sweep
from records.submission import SCRIPT_NAME

ROOT = Path(__file__).parents[1]
DATA = ROOT / ".cache" / "demo"
OUT = ROOT / "runs" / "demo_record"
CONFIGS = ROOT / "configs"
RECIPE = "record_10l"
SEEDS = ("1337", "42")
TRAIN_SECONDS = 45
LARGEST_DIFFERENCE = 1e-6


def main(arguments: Sequence[str] = ()) -> None:
    """Sweep, pack, audit, and run the packed script in an environment with nothing but its requirements."""
    parser = argparse.ArgumentParser(prog="python -m records.demo", description=__doc__)
    rungs = sorted(path.stem for path in CONFIGS.glob("record_*.yaml"))
    parser.add_argument("--rung", choices=rungs, default=RECIPE, help="the record to attempt (default: %(default)s)")
    rung = parser.parse_args(arguments).rung
    recipe = rung == RECIPE
    overlays = ["demo"] if recipe else ["tiny", f"tiny_{rung}"]
    seeds = SEEDS if recipe else SEEDS[:1]
    budget = [f"--clock.max_seconds={TRAIN_SECONDS}"] if recipe else []
    started = time.perf_counter()
    shutil.rmtree(OUT, ignore_errors=True)
    _heading("Corpus: Python's own documentation")
    build_corpus(DATA)
    _heading(f"Sweep: {rung}, seeds {' and '.join(seeds)}")
    configs = [f"--config={CONFIGS / name}.yaml" for name in (rung, *overlays)]
    data = [f"--data.path={DATA}", f"--data.tokenizer_path={DATA / 'tokenizer.model'}"]
    sweep.main([*configs, "--seeds", *seeds, f"--out={OUT / 'sweep'}", "--", *budget, *data])
    _heading("Pack: the submission folder")
    folder = OUT / "submission"
    pack.main([str(OUT / "sweep"), f"--out={folder}", "--author=Demo", "--github-id=demo", "--track=demo"])
    _heading("Audit")
    audit.main([str(folder), f"--data={DATA}"])
    _heading("The packed script alone: in an empty folder, with nothing but its requirements")
    _run_alone(folder, budget)
    print(f"\nDone in {time.perf_counter() - started:.0f} s; the folder is {folder}")


def _run_alone(folder: Path, budget: Sequence[str]) -> None:
    venv.create(OUT / "venv", with_pip=True)
    python = OUT / "venv" / "bin" / "python"
    install: list[str | Path] = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        folder / pack.REQUIREMENTS_NAME,
    ]
    _call(OUT, python, *install)
    alone = OUT / "alone"
    alone.mkdir()
    for name in (SCRIPT_NAME, f"model_seed{SEEDS[0]}.golf"):
        shutil.copyfile(folder / name, alone / name)
    _call(alone, python, SCRIPT_NAME, "validate", f"--artifact=model_seed{SEEDS[0]}.golf")
    scored = _summary(alone, 0)
    claimed = json.loads((folder / pack.SUBMISSION_NAME).read_text())["seed_results"][SEEDS[0]]
    if abs(scored["val_bpb"] - claimed["val_bpb"]) > LARGEST_DIFFERENCE:
        sys.exit(f"error: the packed script scores {scored['val_bpb']}, but {claimed['val_bpb']} is claimed")
    torchrun: list[str | Path] = [python.with_name("torchrun"), "--standalone", "--nproc_per_node=1", SCRIPT_NAME]
    _call(alone, *torchrun, *budget)
    trained = _summary(alone, 1)
    print(
        f"validate: {scored['val_bpb']:.6f} bits per byte, as claimed; torchrun: {trained['step_stop']} steps in "
        f"{trained['wallclock_seconds']:.1f} s, {trained['val_bpb']:.4f} bits per byte, "
        f"code {trained['bytes_code']:,} bytes"
    )


def _summary(folder: Path, version: int) -> dict[str, Any]:
    path = folder / "runs" / RUNS_NAME / f"version_{version}" / SUMMARY_NAME
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def _call(folder: Path, *command: str | Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
    if code:
        sys.exit(code)


def _heading(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
