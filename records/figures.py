"""Figures as people write them: rounded, and compared at the precision that they were written with."""

from __future__ import annotations

NUMBER = r"([-+]?\d{1,18}(?:\.\d{1,18})?(?:[eE][-+]?\d{1,3})?|nan|inf)"
"""A number in a log, as a regular expression's group; short enough for no conversion to overflow."""


class Figure(float):
    """A number that remembers how many decimals it was written with.

    Attributes:
        decimals: digits after the point in its text, an exponent taken into account; 0 for none, or for nan and inf.
    """

    decimals: int

    def __new__(cls, text: str) -> Figure:
        """Read the text of a number."""
        figure = super().__new__(cls, text)
        mantissa, _, exponent = text.lower().partition("e")
        figure.decimals = max(0, len(mantissa.partition(".")[2]) - int(exponent or 0))
        return figure


def agree(one: float, other: float, most: float) -> bool:
    """Whether two figures are the same number, each rounded to the decimals that it was written with.

    Args:
        one: a figure; a plain float is taken as exact.
        other: a figure.
        most: the largest difference that rounding may excuse.
    """
    # Half a unit of the last digit of the coarser one; and what binary floats add to that.
    rounding = max(0.5 * 10.0**-figure.decimals if isinstance(figure, Figure) else 0.0 for figure in (one, other))
    if isinstance(one, int) != isinstance(other, int):  # whole seconds, where the other side has fractions
        rounding = max(rounding, 0.5)
    return abs(one - other) <= min(rounding, most) + 1e-9
