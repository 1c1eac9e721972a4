"""Statistics of a few seeds: mean, spread, confidence interval, and the challenge's test against a baseline.

The challenge's rule for a new record: it must be shown at p < 0.01 that the mean loss is at least 0.005 nats below the
baseline's. The test is Welch's, which allows the two sides to differ in variance. It is one-sided: the null hypothesis
is that the improvement is 0.005 nats or less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from components.errors import UserError

MARGIN_NATS = 0.005
MAX_P = 0.01
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """Statistics of one or more seeds.

    Attributes:
        mean: their mean.
        deviation: their sample standard deviation (n - 1); None for a single seed.
        interval: half-width of the mean's two-sided 95% confidence interval, by Student's t; None for a single seed.
        count: the number of seeds.
    """

    mean: float
    deviation: float | None
    interval: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """Losses compared with a baseline's.

    Attributes:
        improvement: the baseline's mean loss minus this one, in nats; negative if this one is worse.
        p_better: one-sided p-value against no improvement at all; None if not computable.
        p_margin: one-sided p-value against an improvement of `MARGIN_NATS` or less; None if not computable.
        why_not: why the p-values are not computable.
    """

    improvement: float
    p_better: float | None
    p_margin: float | None
    why_not: str | None

    @property
    def holds(self) -> bool | None:
        """Whether the rule is met; None if it could not be tested."""
        if self.improvement < MARGIN_NATS:
            return False
        return None if self.p_margin is None else self.p_margin < MAX_P

    def sentence(self) -> str:
        """The verdict in words."""
        better = "better" if self.improvement >= 0 else "worse"
        said = f"{abs(self.improvement):.5f} nats {better} than the baseline"
        if self.p_margin is not None and self.p_better is not None:
            said += (
                f"; one-sided Welch test: p = {self.p_better:.2g} against no improvement, p = {self.p_margin:.2g} "
                f"against an improvement of at most {MARGIN_NATS} nats"
            )
        else:
            said += f"; Welch's test is not computable: {self.why_not}"
        verdict = {True: "is met", False: "is not met", None: "cannot be decided"}[self.holds]
        return f"{said}; the rule (at least {MARGIN_NATS} nats better at p < {MAX_P}) {verdict}"


def describe(figures: Sequence[float]) -> Sample:
    """Mean, standard deviation and 95% confidence interval of figures, one per seed.

    Raises:
        UserError: there are none, or one is not finite.
    """
    _check(figures)
    count = len(figures)
    mean = math.fsum(figures) / count
    if count == 1:
        return Sample(mean, None, None, count)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in figures) / (count - 1))
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Sample(mean, deviation, quantile * deviation / math.sqrt(count), count)


def compare(losses: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Test losses in nats, one per seed, against a baseline's.

    Raises:
        UserError: a side is empty or holds a figure that is not finite.
    """
    ours, theirs = describe(losses), describe(baseline)
    improvement = theirs.mean - ours.mean
    if ours.deviation is None or theirs.deviation is None:
        side = "this side" if ours.deviation is None else "the baseline"
        return Comparison(improvement, None, None, f"{side} has one seed, and the test needs at least two on each side")
    if not ours.deviation and not theirs.deviation:
        return Comparison(improvement, None, None, "neither side's seeds differ at all")
    return Comparison(improvement, _welch(losses, baseline, 0), _welch(losses, baseline, MARGIN_NATS), None)


def _welch(losses: Sequence[float], baseline: Sequence[float], margin: float) -> float:
    """One-sided p-value of Welch's test that losses are more than a margin below the baseline's."""
    shifted = [x + margin for x in losses]
    return float(stats.ttest_ind(shifted, baseline, equal_var=False, alternative="less").pvalue)


def _check(figures: Sequence[float]) -> None:
    if not figures:
        raise UserError("There are no seeds to compare; give at least one finished seed on each side.")
    if not all(math.isfinite(x) for x in figures):
        raise UserError(
            f"A seed's figure is not finite ({', '.join(map(str, figures))}); leave it out or train it again."
        )
