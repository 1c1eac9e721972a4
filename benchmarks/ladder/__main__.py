"""The command: run everything, compare, write the tables and the picture."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import save
from benchmarks.ladder.compare import Comparison, RunKey, compare, step_ratio, steps_in_time
from benchmarks.ladder.report import picture, tables
from benchmarks.ladder.runs import Job, Result, run_all
from benchmarks.ladder.text import Text
from benchmarks.ladder.variants import RUNGS, TECHNIQUES, VARIANTS, Variant
from components.command import run_command
from components.files import write_whole

STEPS = 300
SEEDS = (1, 2, 3)
DOCS = Path(__file__).parents[2] / "docs"


def gather(jobs: Iterable[Job], processes: int, title: str) -> dict[RunKey, Result]:
    """Run jobs under a progress bar."""
    jobs = list(jobs)
    with tqdm(run_all(jobs, processes), total=len(jobs), desc=title) as finished:
        return {(job.variant.name, job.seed, job.steps): result for job, result in finished}


def all_results(text: Text, processes: int) -> dict[RunKey, Result]:
    """Every variant at the fixed number of steps, then those that the recipe's time gives another number."""
    data = {size: text.prepared(size) for size in sorted({variant.vocab_size for variant in VARIANTS.values()})}

    def job(variant: Variant, seed: int, steps: int) -> Job:
        return Job(variant, seed, steps, data[variant.vocab_size])

    results = gather(
        (job(variant, seed, STEPS) for seed in SEEDS for variant in VARIANTS.values()), processes, f"{STEPS} steps"
    )
    in_time = {name: steps_in_time(step_ratio(results, name, SEEDS, STEPS), STEPS) for name in VARIANTS}
    others = (job(VARIANTS[name], seed, steps) for seed in SEEDS for name, steps in in_time.items() if steps != STEPS)
    return results | gather(others, processes, "the recipe's time")


def fields(comparison: Comparison) -> dict[str, object]:
    """A comparison for the result file."""
    return {**asdict(comparison), "variant": comparison.variant.name}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ladder",
        description="Train the recipe, every rung and every technique by itself at a small scale, and compare them.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="data in the published export's layout, datasets/ and tokenizers/ (default: the demo's corpus)",
    )
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each on one thread (default: 2)")
    args = parser.parse_args()
    results = all_results(Text(args.data), args.processes)
    rungs, techniques = (
        [compare(variant, results, SEEDS, STEPS) for variant in variants] for variants in (RUNGS, TECHNIQUES)
    )
    [bytes_scored] = {result.bytes_scored for result in results.values()}
    report = tables(rungs, techniques, steps=STEPS, num_seeds=len(SEEDS), bytes_scored=bytes_scored)
    print(report)
    runs = [
        {"variant": name, "seed": seed, "steps": steps, **asdict(result)}
        for (name, seed, steps), result in sorted(results.items())
    ]
    save("ladder", {"steps": STEPS, "compared": [fields(one) for one in (*rungs, *techniques)], "runs": runs})
    write_whole(DOCS / "ladder.md", f"# The ladder at a small scale\n\n{report}\n".encode())
    write_whole(DOCS / "ladder.svg", picture(rungs, techniques, STEPS))
    print(f"written to {DOCS / 'ladder.md'} and {DOCS / 'ladder.svg'}")


if __name__ == "__main__":
    run_command(main)
