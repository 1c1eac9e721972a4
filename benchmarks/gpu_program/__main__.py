"""The command: ``python -m benchmarks.gpu_program [--config FILE ...] [--passes train,loop,qat,val,score,ttt]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.common import RESULTS
from benchmarks.gpu_program.captured import ROOT, captured
from benchmarks.gpu_program.chips import CHIPS, Backend
from benchmarks.gpu_program.prediction import predict_run, predict_step, predict_windows
from benchmarks.gpu_program.program import Program, read_program
from benchmarks.gpu_program.report import (
    VERSION,
    as_json,
    comparison,
    kernels_table,
    programs_table,
    read_result,
    step_table,
    summarize,
)
from benchmarks.gpu_program.workload import PASSES, Workload
from components.command import run_command
from components.errors import UserError
from components.files import write_whole


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: A pass is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_program",
        description="What a GPU would run for a configuration, and a prediction of its times. Needs no GPU.",
    )
    parser.add_argument(
        "--config", type=Path, nargs="+", default=[ROOT / "configs" / "record_10l.yaml"], help="a run, then overlays"
    )
    parser.add_argument(
        "--passes", type=lambda text: text.split(","), help=f"of {','.join(PASSES)} (default: the run's)"
    )
    parser.add_argument("--chip", choices=CHIPS, default="H100", help="the GPU (default: H100)")
    parser.add_argument("--attention", choices=get_args(Backend), default="cudnn", help="what computes attention")
    parser.add_argument("--sass", action="store_true", help="count each kernel's machine instructions too")
    parser.add_argument("--code", type=Path, metavar="FOLDER", help="keep the generated programs there")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier result to compare with")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/gpu_program-CONFIG.json)")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.passes or [] if name not in PASSES]
    if unknown:
        raise UserError(f"--passes names {unknown[0]!r}; give some of {','.join(PASSES)}.")
    return args


def measure(args: argparse.Namespace, workload: Workload, capture: dict[str, Any]) -> dict[str, Any]:
    """Everything that the captured programs tell, as plain data."""
    chip, backend = CHIPS[args.chip], args.attention
    programs: dict[str, dict[str, Program]] = {
        name: {part: read_program(**program) for part, program in parts.items()}
        for name, parts in capture["passes"].items()
    }
    steps, windows = {}, {}
    for name, parts in programs.items():
        shapes = workload.describe(name)
        if shapes.is_training:
            updates = capture["updates"]
            num_batches, update = (1, updates["ttt"]) if name == "ttt" else (workload.micro_batches, updates["train"])
            steps[name] = predict_step(parts, num_batches, update, workload, chip, backend)
        else:
            windows[name] = predict_windows(parts, shapes.num_sequences, chip, backend)
    result: dict[str, Any] = {
        "version": VERSION,
        "config": workload.name,
        "chip": args.chip,
        "attention": backend,
        "versions": capture["versions"],
        "passes": {
            name: {part: summarize(program, chip, backend) for part, program in parts.items()}
            for name, parts in programs.items()
        },
        "updates": capture["updates"],
        "predicted_ms": steps,
        "predicted_windows_per_second": windows,
        "predicted_run": predict_run(steps, windows, workload),
    }
    for name, parts in capture["instructions"].items():
        for part, instructions in parts.items():
            for kernel in result["passes"][name][part]["by_kernel"]:
                kernel["instructions"] = instructions[kernel["name"]]
    return result


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{result['config']} on {result['chip']}, attention by {result['attention']}; all times are predictions\n")
    print(programs_table(result["passes"]))
    for name, parts in result["passes"].items():
        for part, program in parts.items():
            print(f"\n{name} {part}: kernels by predicted time\n{kernels_table(program)}")
    if result["predicted_ms"]:
        print(f"\n{step_table(result['predicted_ms'])}")
    for name, rate in result["predicted_windows_per_second"].items():
        print(f"\npredicted for {name}: {rate:,.0f} windows a second on one GPU")
    run = result["predicted_run"]
    if "steps" in run:
        print(f"predicted for the run: {run['steps']:,.0f} steps within the budget")
    if "scoring_seconds" in run:
        print(f"predicted for the final score: {run['scoring_seconds']:.0f} s on all GPUs")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parse(arguments)
    before = read_result(args.against) if args.against else None
    workload = Workload(args.config)
    passes = args.passes or workload.passes
    for name in passes:
        workload.describe(name)  # rejects what the run does not have
    capture = captured(args.config, passes, args.chip, args.attention, args.sass)
    result = measure(args, workload, capture)
    if args.code:
        args.code.mkdir(parents=True, exist_ok=True)
        for name, parts in capture["passes"].items():
            for part, program in parts.items():
                (args.code / f"{name}_{part}.py").write_text(program["code"])
    show(result)
    if before:
        print(f"\n{comparison(before, result)}")
    out = args.out or RESULTS / f"gpu_program-{workload.name}.json"
    write_whole(out, as_json(result).encode())
    print(f"written to {out}")


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
