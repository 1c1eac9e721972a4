"""From programs to what a run would do: the step by part, windows a second, steps and scoring time. All predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.gpu_program.chips import HOST_LAUNCH, Backend, Chip
from benchmarks.gpu_program.program import Program
from benchmarks.gpu_program.roofline import Times, all_reduce_seconds, program_times, update_seconds
from benchmarks.gpu_program.workload import Workload

Programs = Mapping[str, Program]
"""A pass's programs by part: forward and, in training, backward."""


def predict_step(
    programs: Programs,
    num_batches: int,
    update: Sequence[Mapping[str, Any]],
    workload: Workload,
    chip: Chip,
    backend: Backend,
) -> dict[str, float]:
    """Milliseconds of an optimizer step by part.

    The host launches kernels while the device works, so only the longer of the two counts.

    Args:
        programs: Of a batch.
        num_batches: Batches of a rank that make the step.
        update: What clipping and the optimizer call.
        workload: The run.
        chip: What it runs on.
        backend: What computes attention.
    """
    times = sum((program_times(program, chip, backend) for program in programs.values()), Times())
    num_bytes = 4 * sum(parameter.numel() for parameter in workload.network().parameters())
    parts = {name: num_batches * seconds for name, seconds in asdict(times).items()}
    parts["update"] = update_seconds(update, chip)
    parts["all_reduce"] = all_reduce_seconds(num_bytes, workload.num_ranks, chip)
    parts["gather"] = sum(call["gathered"] for call in update) / chip.link
    device = sum(parts.values())
    compiled = sum(program.num_calls for program in programs.values())
    num_launches = num_batches * compiled + sum(call["launches"] for call in update)
    host = num_launches * HOST_LAUNCH
    parts["waiting_for_host"] = max(0.0, host - device)
    milliseconds = {name: 1e3 * seconds for name, seconds in parts.items()}
    return {**milliseconds, "step": sum(milliseconds.values()), "hidden_host": 1e3 * min(host, device)}


def predict_windows(programs: Programs, num_sequences: int, chip: Chip, backend: Backend) -> float:
    """Windows a second on one GPU."""
    return num_sequences / program_times(programs["forward"], chip, backend).total


def predict_run(
    steps: Mapping[str, Mapping[str, float]], windows: Mapping[str, float], workload: Workload
) -> dict[str, float]:
    """What a whole run would do.

    Args:
        steps: Milliseconds of a step by part, by pass that trains.
        windows: Windows a second by scoring pass.
        workload: The run.

    Returns:
        Steps within the budget, where every phase's step is known and the budget is in seconds; seconds of the final
        score on all GPUs with the training during it, where their rates and the validation split's size are known.
    """
    run = {}
    if workload.phases.keys() <= steps.keys() and workload.seconds > 0:
        run["steps"] = sum(
            1e3 * share * workload.seconds / steps[name]["step"] for name, share in workload.phases.items()
        )
    num_windows, num_test_steps = workload.num_windows, workload.num_test_steps
    if "score" in windows and num_windows is not None and num_test_steps is not None:
        scoring = num_windows / windows["score"] / workload.num_ranks
        if not num_test_steps:
            run["scoring_seconds"] = scoring
        elif "ttt" in steps:
            run["scoring_seconds"] = scoring + num_test_steps * steps["ttt"]["step"] / 1e3
    return run
