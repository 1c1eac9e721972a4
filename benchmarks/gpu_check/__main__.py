"""The command: ``python -m benchmarks.gpu_check [--golden FOLDER --data FOLDER --tokenizer FILE]``.

Made for the first minutes on a GPU, everything compiled anew: under 8 minutes on an H100, by estimate until one has run
it. A part that fails does not stop the others, but the command then ends with exit code 1. Without a GPU the
same parts run at a small size on the CPU, which tests the check alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common import RESULTS, device, device_name, result_path, table, write_results
from benchmarks.gpu_check import golden, quantizer, speed, training
from benchmarks.gpu_check.findings import Finding, Outcome, run_part
from benchmarks.gpu_check.setting import FULL, SMALL, Setting
from benchmarks.overhead import DATA
from callbacks.attention import DEFAULT_BACKENDS
from components.attention import only_backends
from components.command import run_command
from components.errors import UserError

PARTS: Mapping[str, Callable[[Setting], Iterator[Finding]]] = {
    "quantizer": quantizer.rounding,
    "golden logits": golden.logits,
    "golden trajectory": golden.trajectory,
    "golden scores": golden.scores,
    "training": training.training,
    "late QAT": training.late_qat,
    "synchronization": training.synchronization,
    "exported file": quantizer.exported_file,
    "Muon": speed.muon,
    "attention": speed.attention,
    "fused MLP": speed.fused_mlp,
    "scoring": speed.scoring,
    "overhead": speed.overhead,
}
"""In the order of what is worth most if time runs out."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: A part is unknown, or a path does not exist.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="What must hold on a GPU, and what a step takes beside its prediction.",
    )
    parser.add_argument("--golden", type=Path, help="folder of golden numbers; without it those parts are skipped")
    parser.add_argument("--data", type=Path, help="folder of the shards that they were computed on")
    parser.add_argument("--tokenizer", type=Path, help="the SentencePiece model that encoded these")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)} (default: all)"
    )
    parser.add_argument("--corpus", type=Path, default=DATA, help=f"folder for text to train on (default: {DATA})")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/gpu_check-CHIP.json)")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        raise UserError(f"--parts names {unknown[0]!r}; give some of {','.join(PARTS)}.")
    for name in ("golden", "data", "tokenizer"):
        path = getattr(args, name)
        if path is not None and not path.exists():
            raise UserError(f"--{name} {path} does not exist; give one that does, or leave it out to skip its parts.")
    return args


def run_parts(names: Sequence[str], setting: Setting) -> Iterator[Outcome]:
    """Run parts one after another, whatever becomes of them, on the attention of a run."""
    with only_backends(DEFAULT_BACKENDS):
        for name in names:
            print(f"== {name}", flush=True)
            outcome = run_part(name, PARTS[name], setting)
            print(f"{outcome.status} in {outcome.seconds:.0f} s {outcome.reason}".rstrip(), flush=True)
            yield outcome
            torch.compiler.set_stance("default")  # a part may have failed while compilation was forbidden
            gc.collect()
            if device().type == "cuda":
                torch.cuda.empty_cache()


def findings_table(outcomes: Sequence[Outcome]) -> str:
    """Everything that was found; an exclamation mark where a limit is exceeded."""
    rows = [
        (
            f"{outcome.part}: {finding.name}",
            number(finding.value),
            "" if finding.predicted is None else number(finding.predicted),
            finding.unit,
            "" if finding.limit is None else f"{number(finding.limit)}{'' if finding.holds else ' !'}",
        )
        for outcome in outcomes
        for finding in outcome.findings
    ]
    return table(("finding", "measured", "predicted", "unit", "limit"), rows)


def number(value: float | str) -> str:
    """A number to four digits."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1e4 else f"{value:.4g}"


def parts_table(outcomes: Sequence[Outcome]) -> str:
    """How each part ended."""
    return table(
        ("part", "seconds", "ended", "because"), [(o.part, f"{o.seconds:.1f}", o.status, o.reason) for o in outcomes]
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    args = parse(arguments)
    started = time.perf_counter()
    setting = Setting(FULL if device().type == "cuda" else SMALL, args.golden, args.data, args.tokenizer, args.corpus)
    if device().type != "cuda":
        print("No GPU here: the parts run at a small size on the CPU, which tests the check alone.")
    RESULTS.mkdir(exist_ok=True)
    out = args.out or result_path("gpu_check")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # so that everything is compiled once, as on a fresh machine
        for outcome in run_parts(args.parts, setting):
            outcomes.append(outcome)
            # After each part: what was found so far survives whatever ends the next.
            seconds = time.perf_counter() - started
            write_results(out, {"seconds": seconds, "parts": [dataclasses.asdict(done) for done in outcomes]})
    chip = setting.prediction["chip"] if setting.prediction else "no chip at this size"
    print(f"\n{device_name()}, torch {torch.__version__}; predicted by benchmarks.gpu_program for {chip}\n")
    print(findings_table(outcomes))
    print(f"\n{parts_table(outcomes)}\n")
    failed = [outcome.part for outcome in outcomes if outcome.status == "failed"]
    print(f"{time.perf_counter() - started:.0f} s, {len(failed)} of {len(outcomes)} parts failed; written to {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(lambda: sys.exit(main(sys.argv[1:])))
