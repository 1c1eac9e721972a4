import math

import pytest
from scipy import stats

from components.errors import UserError
from records.statistics import MARGIN_NATS, compare, describe


def test_mean_deviation_and_interval_of_a_hand_worked_example() -> None:
    sample = describe([1.0, 2.0, 3.0, 4.0])
    assert sample.mean == 2.5
    assert sample.deviation == pytest.approx(math.sqrt(5 / 3))
    assert sample.interval == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2, rel=1e-6)  # Student's t at 3 degrees
    assert sample.count == 4


def test_interval_is_scipys() -> None:
    losses = [1.9634, 1.9641, 1.9629]
    sample = describe(losses)
    low, high = stats.t.interval(0.95, 2, loc=sample.mean, scale=stats.sem(losses))
    assert sample.interval == pytest.approx((high - low) / 2)


def test_a_single_seed_has_no_spread() -> None:
    sample = describe([1.5])
    assert (sample.mean, sample.deviation, sample.interval, sample.count) == (1.5, None, None, 1)


@pytest.mark.parametrize("figures", [[], [1.0, math.nan], [math.inf]])
def test_no_seeds_and_figures_that_are_not_finite_are_refused(figures: list[float]) -> None:
    with pytest.raises(UserError):
        describe(figures)
    with pytest.raises(UserError):
        compare([1.0, 2.0], figures)


def test_welch_of_a_hand_worked_example() -> None:
    # Means 1 and 2, variances 1e-4 and 4e-4 of 3 each: t = -1 / sqrt(5e-4 / 3), degrees by Welch-Satterthwaite.
    ours, theirs = [0.99, 1.0, 1.01], [1.98, 2.0, 2.02]
    t = -1 / math.sqrt(5e-4 / 3)
    degrees = (5e-4 / 3) ** 2 / ((1e-4 / 3) ** 2 / 2 + (4e-4 / 3) ** 2 / 2)
    comparison = compare(ours, theirs)
    assert comparison.improvement == pytest.approx(1)
    assert comparison.p_better == pytest.approx(float(stats.t.cdf(t, degrees)))
    assert comparison.holds is True


def test_the_rule_tests_against_the_margin() -> None:
    baseline = [1.9634, 1.9640, 1.9637]
    barely = compare([x - 0.0055 for x in baseline], baseline)
    assert barely.improvement == pytest.approx(0.0055)
    assert barely.p_better is not None
    assert barely.p_better < 0.01  # significantly better than the baseline
    assert barely.holds is False  # but not significantly by 0.005
    assert compare([x - 0.0080 for x in baseline], baseline).holds is True
    assert compare([x - MARGIN_NATS / 2 for x in baseline], baseline).holds is False


def test_a_worse_mean_never_meets_the_rule() -> None:
    worse = compare([2.1, 2.1001, 2.1002], [2.0, 2.0001, 2.0002])
    assert worse.improvement < 0
    assert worse.holds is False
    assert "worse" in worse.sentence()


@pytest.mark.parametrize(
    ("losses", "baseline", "why"),
    [
        ([1.0], [2.0, 2.1], "this side has one seed"),
        ([1.0, 1.1], [2.0], "the baseline has one seed"),
        ([1.0, 1.0], [2.0, 2.0], "neither side's seeds differ"),
    ],
)
def test_losses_that_cannot_be_tested_do_not_pass(losses: list[float], baseline: list[float], why: str) -> None:
    comparison = compare(losses, baseline)
    assert comparison.p_margin is None
    assert comparison.holds is None
    assert comparison.why_not is not None
    assert why in comparison.why_not
    assert "not computable" in comparison.sentence()
    assert "cannot be decided" in comparison.sentence()
