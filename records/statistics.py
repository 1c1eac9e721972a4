"""What a handful of seeds says: mean, spread, an interval, and whether it beats a baseline as the challenge asks.

The challenge's rule for a new record: it must be shown at p < 0.01 that the mean loss is at least 0.005 nats under the
baseline's. The test is Welch's, which lets the two sides differ in variance, and one-sided: the null hypothesis is that
the improvement is 0.005 nats or less.
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
    """Figures of several seeds, at least one.

    Attributes:
        mean: their mean.
        deviation: their standard deviation, with n - 1; None for a single seed.
        interval: half the width of the two-sided 95% interval of the mean, by Student's t; None for a single seed.
        count: how many there are.
    """

    mean: float
    deviation: float | None
    interval: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """Losses against a baseline's.

    Attributes:
        improvement: by how many nats the mean loss is under the baseline's; negative where it is over it.
        p_better: chance of such losses if the mean were no better at all, one-sided; None where not computable.
        p_margin: chance of such losses if the improvement were `MARGIN_NATS` or less, one-sided; None likewise.
        why_not: why the chances are not computable.
    """

    improvement: float
    p_better: float | None
    p_margin: float | None
    why_not: str | None

    @property
    def holds(self) -> bool | None:
        """Whether the rule is met; None where no test could be made."""
        if self.improvement < MARGIN_NATS:
            return False
        return None if self.p_margin is None else self.p_margin < MAX_P

    def sentence(self) -> str:
        """The verdict in words."""
        better = "better" if self.improvement >= 0 else "worse"
        said = f"{abs(self.improvement):.5f} nats {better} than the baseline"
        if self.p_margin is not None and self.p_better is not None:
            said += (
                f"; Welch, one-sided: p = {self.p_better:.2g} that it is no better, p = {self.p_margin:.2g} that it is "
                f"no more than {MARGIN_NATS} nats better"
            )
        else:
            said += f"; Welch's test is not computable: {self.why_not}"
        verdict = {True: "holds", False: "does not hold", None: "cannot be decided"}[self.holds]
        return f"{said}; the rule (at least {MARGIN_NATS} nats better at p < {MAX_P}) {verdict}"


def describe(figures: Sequence[float]) -> Sample:
    """Mean, standard deviation and 95% interval of figures, one a seed.

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
    """Test losses in nats, one a seed, against a baseline's.

    Raises:
        UserError: a side is empty or holds a figure that is not finite.
    """
    ours, theirs = describe(losses), describe(baseline)
    improvement = theirs.mean - ours.mean
    if ours.deviation is None or theirs.deviation is None:
        side = "this side" if ours.deviation is None else "the baseline"
        return Comparison(improvement, None, None, f"{side} has one seed and the test needs two of each")
    if not ours.deviation and not theirs.deviation:
        return Comparison(improvement, None, None, "neither side's seeds differ at all")
    return Comparison(improvement, _welch(losses, baseline, 0), _welch(losses, baseline, MARGIN_NATS), None)


def _welch(losses: Sequence[float], baseline: Sequence[float], margin: float) -> float:
    """One-sided p of Welch's test that losses are more than a margin under the baseline's."""
    shifted = [x + margin for x in losses]
    return float(stats.ttest_ind(shifted, baseline, equal_var=False, alternative="less").pvalue)


def _check(figures: Sequence[float]) -> None:
    if not figures:
        raise UserError("There are no seeds to compare; give at least one finished seed on each side.")
    if not all(math.isfinite(x) for x in figures):
        raise UserError(
            f"A seed's figure is not finite ({', '.join(map(str, figures))}); leave it out or train it again."
        )
