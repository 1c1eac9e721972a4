"""``python -m records.sweep``: the same run with several seeds, and their statistics.

Each seed is a ``fit``, then a ``validate`` of its artifact in a fresh process; the output of both is kept in the
sweep's folder. An interrupted sweep continues where it stopped. Finished seeds are not repeated unless ``--again``
names them. A seed that fails is reported and skipped, and the command then exits non-zero. Arguments after ``--`` go
to both commands, as in ``... --seeds 1 2 -- --clock.max_seconds 60``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.command import run_command
from components.errors import UserError
from components.files import write_whole
from components.run_files import LOG_NAME, RUNS_NAME, SUMMARY_NAME
from records.baseline import baseline_losses
from records.curves import draw_curves
from records.runs import newest_finished, open_run, read_json
from records.sweep_report import report

CLI = Path(__file__).parents[1] / "cli.py"
SWEEP_NAME = "sweep.json"
STATE_NAME = "seed.json"
LARGEST_DIFFERENCE = 1e-4
"""Bits per byte by which a fresh process may differ from the one that trained: they may divide the work differently."""
LOOK_SECONDS = 0.2
PROGRESS_SECONDS = 15.0


@dataclass(frozen=True)
class Device:
    """Where one seed runs at a time: CUDA device numbers, or None for the configuration's devices."""

    gpus: str | None = None

    @property
    def arguments(self) -> list[str]:
        """The commands' arguments for it."""
        return [] if self.gpus is None else [f"--trainer.devices={self.gpus.count(',') + 1}"]

    @property
    def environment(self) -> dict[str, str]:
        """The commands' environment variables for it."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}


@dataclass
class Sweep:
    """One configuration with several seeds.

    Attributes:
        out: the sweep's folder.
        configs: configuration files, later ones over earlier ones.
        extra: further arguments of both commands.
    """

    out: Path
    configs: list[Path]
    extra: list[str]
    failures: dict[int, str] = field(default_factory=dict)
    _stopping: bool = False

    def run(self, seeds: Sequence[int], devices: Sequence[Device]) -> None:
        """Finish every seed, one at a time on each device; failures are recorded by seed.

        Raises:
            UserError: the folder holds seeds run with another configuration.
        """
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for seed in seeds:
            if self.result(seed) is None:
                todo.put(seed)
            else:
                _print(seed, "already finished")
        workers = [threading.Thread(target=self._work, args=(todo, device), daemon=True) for device in devices]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():  # an interrupt does not reach a wait without a timeout
                    worker.join(LOOK_SECONDS)
        except KeyboardInterrupt:
            self._stopping = True
            for worker in workers:
                worker.join()
            raise

    def result(self, seed: int) -> dict[str, Any] | None:
        """A finished seed's figures; None for an unfinished one.

        Raises:
            UserError: the seed was run with another configuration.
        """
        state = self._state(seed)
        if "validate" not in state:
            return None
        fitted = open_run(self._folder(seed) / state["fit"]).summary
        scored = read_json(self._folder(seed) / state["validate"] / SUMMARY_NAME, "run the seed with --again")
        return {
            "seed": seed,
            "fit": str(self._folder(seed) / state["fit"]),
            **{name: scored[name] for name in ("val_loss", "val_bpb", "eval_time_seconds")},
            **{
                name: fitted[name]
                for name in (
                    "pre_quant_val_loss",
                    "pre_quant_val_bpb",
                    "step_stop",
                    "wallclock_seconds",
                    "bytes_model",
                    "bytes_code",
                    "bytes_total",
                )
            },
        }

    def forget(self, seeds: Sequence[int]) -> None:
        """Let finished seeds run again; their old folders stay."""
        for seed in seeds:
            (self._folder(seed) / STATE_NAME).unlink(missing_ok=True)

    def _work(self, todo: queue.SimpleQueue[int], device: Device) -> None:
        while not self._stopping:
            try:
                seed = todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._finish(seed, device)
            except UserError as error:
                self.failures[seed] = str(error)
                _print(seed, f"FAILED: {error}")

    def _finish(self, seed: int, device: Device) -> None:
        state = self._state(seed)
        if "fit" not in state:
            folder = self._execute("fit", seed, device, [])
            state["fit"] = str(folder.relative_to(self._folder(seed)))
            self._write_state(seed, state)
        run = open_run(self._folder(seed) / state["fit"])
        folder = self._execute("validate", seed, device, ["--artifact", str(run.artifact)])
        scored = read_json(folder / SUMMARY_NAME, "run the seed again")
        if abs(scored["val_bpb"] - run.summary["val_bpb"]) > LARGEST_DIFFERENCE:
            raise UserError(
                f"{run.artifact} scores {scored['val_bpb']} bits per byte in a fresh process and "
                f"{run.summary['val_bpb']} in the one that trained it; find out why before you submit anything."
            )
        state["validate"] = str(folder.relative_to(self._folder(seed)))
        self._write_state(seed, state)
        _print(seed, f"finished: val_loss {scored['val_loss']:.6f} val_bpb {scored['val_bpb']:.6f}")

    def _execute(self, command: str, seed: int, device: Device, arguments: list[str]) -> Path:
        """Run a command to its end, printing its progress; returns its log folder."""
        runs = self._folder(seed) / command
        runs.mkdir(parents=True, exist_ok=True)
        before = set(runs.glob(f"{RUNS_NAME}/version_*"))
        output = self._folder(seed) / f"{command}.log"
        full = [
            *(sys.executable, str(CLI), command),
            *(f"--config={path}" for path in self.configs),
            *self.extra,
            f"--seed_everything={seed}",
            f"--trainer.default_root_dir={runs}",
            *device.arguments,
            *arguments,
        ]
        _print(seed, f"{command} starts; its output goes to {output}")
        environment = {**os.environ, **device.environment}
        with (
            output.open("w") as file,
            subprocess.Popen(full, env=environment, stdout=file, stderr=subprocess.STDOUT) as process,
        ):
            self._watch(process, seed, runs, before)
        if process.returncode:
            raise UserError(f"{command} exited with code {process.returncode}: {_last_line(output)} (see {output})")
        folder = newest_finished(runs)
        assert folder is not None
        assert folder not in before
        return folder

    def _watch(self, process: subprocess.Popen[bytes], seed: int, runs: Path, before: set[Path]) -> None:
        said, look_at = "", time.monotonic() + PROGRESS_SECONDS
        while process.poll() is None:
            if self._stopping:
                process.terminate()
            time.sleep(LOOK_SECONDS)
            if time.monotonic() > look_at:
                look_at += PROGRESS_SECONDS
                logs = [log for log in runs.glob(f"{RUNS_NAME}/*/{LOG_NAME}") if log.parent not in before]
                line = _last_line(logs[0]) if logs else ""
                if line != said:
                    _print(seed, line)
                    said = line

    def _folder(self, seed: int) -> Path:
        return self.out / f"seed{seed}"

    def _state(self, seed: int) -> dict[str, Any]:
        path = self._folder(seed) / STATE_NAME
        if not path.exists():
            return {"settings": self._fingerprint()}
        state = read_json(path, "run the seed with --again")
        if state["settings"] != self._fingerprint():
            raise UserError(
                f"{self._folder(seed)} was run with another configuration or other arguments; choose another --out, "
                f"or run the seed again with --again {seed}."
            )
        return state

    def _write_state(self, seed: int, state: dict[str, Any]) -> None:
        write_whole(self._folder(seed) / STATE_NAME, json.dumps(state, indent=2).encode())

    def _fingerprint(self) -> str:
        contents = [path.read_text() for path in self.configs]
        return hashlib.sha256(json.dumps([contents, self.extra]).encode()).hexdigest()


def _print(seed: int, message: str) -> None:
    print(f"seed {seed}: {message}", flush=True)


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def main(arguments: Sequence[str]) -> None:
    """Run the seeds, then print and save their statistics.

    Raises:
        UserError: a setting is wrong, or a seed failed; what finished is saved anyway.
    """
    ours, extra = list(arguments), []
    if "--" in ours:
        cut = ours.index("--")
        ours, extra = ours[:cut], ours[cut + 1 :]
    args = _parser().parse_args(ours)
    for path in args.config:
        if not path.is_file():
            raise UserError(f"There is no configuration {path}; give --config a YAML file, as for cli.py.")
    seeds = list(dict.fromkeys([*args.seeds, *args.again]))
    baseline = baseline_losses(args.baseline)
    out = (args.out or Path("runs") / "sweeps" / args.config[0].stem).resolve()
    sweep = Sweep(out, [path.resolve() for path in args.config], extra)
    sweep.forget(args.again)
    sweep.run(seeds, [Device(gpus) for gpus in args.devices] or [Device()])
    results = [result for seed in seeds if (result := sweep.result(seed)) is not None]
    if results:
        content, lines = report(results, baseline)
        content |= {"configs": [str(path) for path in sweep.configs], "arguments": extra}
        content["failures"] = {str(seed): why for seed, why in sweep.failures.items()}
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / SWEEP_NAME, (json.dumps(content, indent=2) + "\n").encode())
        draw_curves({r["seed"]: Path(r["fit"]) / LOG_NAME for r in results}, out / "curves.png")
        print(f"\n{lines}\n\nsaved: {out / SWEEP_NAME}, {out / 'curves.png'}")
    if sweep.failures:
        listed = "; ".join(f"seed {seed}: {why}" for seed, why in sorted(sweep.failures.items()))
        raise UserError(
            f"{len(sweep.failures)} of {len(seeds)} seeds failed ({listed}); fix the cause and run the command again."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m records.sweep", description=__doc__)
    parser.add_argument("--config", type=Path, action="append", required=True, help="as for cli.py; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="the seeds of the runs")
    parser.add_argument("--again", type=int, nargs="+", default=[], metavar="SEED", help="seeds to run again")
    parser.add_argument(
        "--baseline",
        nargs="+",
        default=[],
        help="the baseline: a sweep.json, a submission.json, or the losses of its seeds in nats",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=[],
        metavar="GPUS",
        help="run one seed at a time on each of these groups of GPUs, whose numbers are joined by commas (such as "
        "0,1,2,3 4,5,6,7); by default one seed after another on the configuration's devices",
    )
    parser.add_argument("--out", type=Path, help="the sweep's folder (default: runs/sweeps/NAME OF THE FIRST CONFIG)")
    return parser


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
