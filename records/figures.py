"""Figures as people write them: rounded, and compared at their written precision."""

from __future__ import annotations

NUMBER = r"([-+]?\d{1,18}(?:\.\d{1,18})?(?:[eE][-+]?\d{1,3})?|nan|inf)"
"""A regular expression group for a number in a log; short enough that no conversion overflows."""


class Figure(float):
    """A number that keeps its number of written decimals.

    Attributes:
        decimals: digits after the decimal point in its text, adjusted for an exponent; 0 for nan and inf.
    """

    decimals: int

    def __new__(cls, text: str) -> Figure:
        """Parse a number's text."""
        figure = super().__new__(cls, text)
        mantissa, _, exponent = text.lower().partition("e")
        figure.decimals = max(0, len(mantissa.partition(".")[2]) - int(exponent or 0))
        return figure


def agree(one: float, other: float, most: float) -> bool:
    """Whether two figures are the same number, each rounded to its written decimals.

    Args:
        one: a figure; a plain float is exact.
        other: a figure.
        most: the largest difference that rounding may explain.
    """
    # Half a unit in the last digit of the coarser one, plus binary floating-point error.
    rounding = max(0.5 * 10.0**-figure.decimals if isinstance(figure, Figure) else 0.0 for figure in (one, other))
    if isinstance(one, int) != isinstance(other, int):  # whole seconds, if the other side has fractions
        rounding = max(rounding, 0.5)
    return abs(one - other) <= min(rounding, most) + 1e-9
