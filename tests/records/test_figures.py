import math

import pytest

from records.figures import Figure, agree


@pytest.mark.parametrize(
    ("text", "decimals"),
    [("1.0810", 4), ("600", 0), ("1e-3", 3), ("1.5e-3", 4), ("2.5e2", 0), ("nan", 0), ("-0.25", 2)],
)
def test_a_figure_is_its_number_and_keeps_its_decimals(text: str, decimals: int) -> None:
    figure = Figure(text)
    assert figure.decimals == decimals
    assert math.isclose(figure, float(text)) or text == "nan"


@pytest.mark.parametrize(
    ("claimed", "said", "most", "same"),
    [
        (171, Figure("170.665"), 0.5, True),  # whole seconds
        (170, Figure("170.665"), 0.5, False),
        (Figure("1.1556"), Figure("1.15555486"), 5e-4, True),
        (Figure("1.1555"), Figure("1.15555486"), 5e-4, False),
        (Figure("1.16282670"), Figure("1.1628"), 5e-4, True),  # the log is the coarser one
        (Figure("1.16293"), Figure("1.1628"), 5e-4, False),
        (Figure("1.2"), Figure("1.1628"), 5e-4, False),  # so few decimals excuse no more than `most`
        (7379, 7379, 0, True),
        (7379, 7380, 0, False),
        (math.nan, Figure("1.1"), 5e-4, False),
    ],
)
def test_figures_agree_as_far_as_they_were_rounded(claimed: float, said: float, most: float, same: bool) -> None:
    assert agree(claimed, said, most) == same
