"""The demo's curve: where it passes a rival, and its picture."""

import re

import pytest

from benchmarks.demo_curve import crossing, draw

SCORES = {400.0: 1.0, 100.0: 2.0}


@pytest.mark.parametrize(("rival", "seconds"), [(1.5, 200), (2.0, 100), (1.75, 100 * 2**0.5)])
def test_passes_a_rival_between_two_budgets(rival: float, seconds: float) -> None:
    assert crossing(SCORES, rival) == pytest.approx(seconds)


@pytest.mark.parametrize("rival", [2.5, 1.0, 0.5])
def test_does_not_pass_a_rival_outside_of_the_curve(rival: float) -> None:
    assert crossing(SCORES, rival) is None


def test_names_the_first_crossing_of_several() -> None:
    assert crossing({1: 2.0, 2: 1.0, 4: 2.0, 8: 1.0}, 1.5) == pytest.approx(2**0.5)


def test_the_picture_marks_each_score_and_only_the_rivals_that_it_passes() -> None:
    picture = draw(SCORES, {"passed": 1.5, "not passed": 0.5}).decode()
    words = re.findall(r"<!-- (.+?) -->", picture)
    assert {"2.000", "1.000", "passed: 1.500", "not passed: 0.500", "after 200 s"} <= set(words)
    assert len([word for word in words if word.startswith("after")]) == 1
