"""Paired differences between variants, at a fixed number of steps and in a fixed time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.ladder.runs import Result
from benchmarks.ladder.variants import RECIPE, Variant
from records.statistics import Sample, describe

SAME_TIME = 0.05
"""Steps whose times differ by less than this share are equally long: both budgets then mean the same run."""

RunKey = tuple[str, int, int]
"""Variant, seed and steps."""


@dataclass(frozen=True)
class Comparison:
    """A variant next to the one that it is compared with.

    Attributes:
        variant: What was run.
        bits_per_byte: Mean over seeds after the fixed number of steps, of the exported file.
        bytes_model: Mean size of that file.
        step_ratio: Time of a step over the recipe's.
        at_steps: Its bits per byte minus the other's, paired by seed, after the fixed number of steps.
        steps_in_time: Steps that it has time for while the recipe takes the fixed number.
        in_time: The difference when each has had that time.
    """

    variant: Variant
    bits_per_byte: float
    bytes_model: float
    step_ratio: float
    at_steps: Sample
    steps_in_time: int
    in_time: Sample


def step_ratio(results: Mapping[RunKey, Result], name: str, seeds: Sequence[int], steps: int) -> float:
    """Time of a variant's step over the recipe's, each the median over seeds."""
    ours, recipes = (median(results[who, seed, steps].step_ratio for seed in seeds) for who in (name, RECIPE))
    return ours / recipes


def steps_in_time(ratio: float, steps: int) -> int:
    """Steps that fit in the time of ``steps`` of the recipe's, given the ratio of their times."""
    return steps if abs(ratio - 1) < SAME_TIME else round(steps / ratio)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Sample:
    """Statistics of the differences, ours minus theirs, of figures in the order of their seeds."""
    return describe([a - b for a, b in zip(ours, theirs, strict=True)])


def verdict(difference: Sample) -> str:
    """What a difference in bits per byte shows."""
    if difference.interval is None or abs(difference.mean) <= difference.interval:
        return "not shown"
    return "better" if difference.mean < 0 else "worse"


def compare(variant: Variant, results: Mapping[RunKey, Result], seeds: Sequence[int], steps: int) -> Comparison:
    """Compare a variant with its own reference, given the results of both at both budgets."""

    def scores(name: str, count: int) -> list[float]:
        return [results[name, seed, count].bits_per_byte for seed in seeds]

    ratios = {name: step_ratio(results, name, seeds, steps) for name in (variant.name, variant.against)}
    counts = {name: steps_in_time(ratio, steps) for name, ratio in ratios.items()}
    ours = scores(variant.name, steps)
    return Comparison(
        variant,
        bits_per_byte=fmean(ours),
        bytes_model=fmean(results[variant.name, seed, steps].bytes_model for seed in seeds),
        step_ratio=ratios[variant.name],
        at_steps=paired(ours, scores(variant.against, steps)),
        steps_in_time=counts[variant.name],
        in_time=paired(scores(variant.name, counts[variant.name]), scores(variant.against, counts[variant.against])),
    )
