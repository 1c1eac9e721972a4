"""Sets of addresses: which elements an index expression reaches, counted exactly and without going through all of them.

An index variable is cut into digits of a mixed radix, at the numbers that the kernel divides it by. Every division and
remainder is then a sum of digits again, and the addresses of an access are few intervals.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_GRID = 1 << 26
"""The most points at which a mask is evaluated."""

Spans = NDArray[np.int64]
"""Disjoint intervals of addresses in ascending order: first and end (exclusive), [intervals, 2]."""


@dataclass(frozen=True)
class Digit:
    """The part ``variable // low % (high // low)`` of an index variable, where ``low`` divides ``high``."""

    variable: str
    low: int
    high: int

    @property
    def size(self) -> int:
        """How many values it takes."""
        return self.high // self.low

    def cut(self, edges: Iterable[int]) -> list[Digit]:
        """The digits between its ends and those of ``edges`` that lie between them, the lowest first."""
        ends = [self.low, *sorted(edge for edge in edges if self.low < edge < self.high), self.high]
        return [Digit(self.variable, low, high) for low, high in itertools.pairwise(ends)]


@dataclass(frozen=True)
class Affine:
    """A constant and a sum of digits, each times a factor."""

    constant: int
    factors: Mapping[Digit, int] = field(default_factory=dict)

    @cached_property
    def least(self) -> int:
        """A lower bound of its values: the least one, unless two digits share a part of a variable."""
        return self.constant + sum(min(0, factor * (digit.size - 1)) for digit, factor in self.factors.items())

    @cached_property
    def most(self) -> int:
        """An upper bound of its values."""
        return self.constant + sum(max(0, factor * (digit.size - 1)) for digit, factor in self.factors.items())

    def __add__(self, other: Affine) -> Affine:
        """Their sum."""
        factors = defaultdict(int, self.factors)
        for digit, factor in other.factors.items():
            factors[digit] += factor
        return Affine(self.constant + other.constant, {d: f for d, f in factors.items() if f})

    def times(self, factor: int) -> Affine:
        """Its multiple."""
        return Affine(self.constant * factor, {d: f * factor for d, f in self.factors.items()} if factor else {})

    def divided(self, divisor: int) -> tuple[Affine, Affine] | None:
        """Quotient and remainder, or None if the digits do not tell them."""
        quotient, remainder = Affine(self.constant // divisor), Affine(self.constant % divisor)
        for digit, factor in self.factors.items():
            edge = digit.low * divisor // factor if factor > 0 and divisor % factor == 0 else digit.low
            for part in digit.cut([edge] if digit.high % edge == 0 else []):
                whole = factor * part.low // digit.low
                if whole % divisor == 0:
                    quotient += Affine(0, {part: whole // divisor})
                else:
                    remainder += Affine(0, {part: whole})
        return (quotient, remainder) if 0 <= remainder.least <= remainder.most < divisor else None


def refined(affines: Sequence[Affine]) -> list[Affine]:
    """The same expressions in digits that are equal or disjoint."""
    edges: dict[str, set[int]] = defaultdict(set)
    for affine in affines:
        for digit in affine.factors:
            edges[digit.variable] |= {digit.low, digit.high}
    for variable, found in edges.items():
        for low, high in itertools.pairwise(sorted(found)):
            assert high % low == 0, f"{variable} is divided by {low} and by {high}, which is no multiple of it"
    result = []
    for affine in affines:
        total = Affine(affine.constant)
        for digit, factor in affine.factors.items():
            parts = digit.cut(edges[digit.variable])
            total += Affine(0, {part: factor * part.low // digit.low for part in parts})
        result.append(total)
    return result


def num_points(digits: Iterable[Digit]) -> int:
    """How many combinations of values some digits take."""
    disjoint = {digit for affine in refined([Affine(0, {digit: 1}) for digit in digits]) for digit in affine.factors}
    return math.prod(digit.size for digit in disjoint)


@dataclass(frozen=True)
class Condition:
    """Where a mask is true.

    Args:
        parts: What it compares.
        holds: The mask, from arrays of the parts' values.
    """

    parts: tuple[Affine, ...]
    holds: Callable[..., Any]

    def __and__(self, other: Condition) -> Condition:
        """Where both are true."""
        return self._with(other, np.logical_and)

    def __or__(self, other: Condition) -> Condition:
        """Where one is true."""
        return self._with(other, np.logical_or)

    def __invert__(self) -> Condition:
        """Where it is false."""
        return Condition(self.parts, lambda *values: np.logical_not(self.holds(*values)))

    def _with(self, other: Condition, joined: Callable[[Any, Any], Any]) -> Condition:
        num = len(self.parts)
        return Condition(
            self.parts + other.parts, lambda *values: joined(self.holds(*values[:num]), other.holds(*values[num:]))
        )


EVERYWHERE = Condition((), lambda: np.True_)
NOWHERE = ~EVERYWHERE


def compared(left: Affine, right: Affine, by: Callable[[Any, Any], Any]) -> Condition:
    """Where a comparison is true."""
    difference = left + right.times(-1)
    at_ends = {bool(by(difference.least, 0)), bool(by(difference.most, 0))}
    if len(at_ends) == 1 and (not difference.factors or by not in (operator.eq, operator.ne)):
        return EVERYWHERE if at_ends == {True} else NOWHERE
    return Condition((difference,), lambda value: by(value, 0))


def reached(address: Affine, where: Condition = EVERYWHERE) -> Spans:
    """The addresses that an expression takes where a mask is true."""
    address, *parts = refined([address, *where.parts])
    masked = sorted({digit for part in parts for digit in part.factors}, key=lambda d: (d.variable, d.low))
    sizes = [digit.size for digit in masked]
    assert math.prod(sizes) <= MAX_GRID, f"a mask over {math.prod(sizes):,} points"
    grid = dict(zip(masked, np.meshgrid(*map(np.arange, sizes), indexing="ij", sparse=True), strict=True))

    def values(affine: Affine) -> Any:
        return sum((f * grid[d] for d, f in affine.factors.items() if d in grid), np.int64(affine.constant))

    is_true = np.broadcast_to(where.holds(*map(values, parts)), sizes)
    first = np.broadcast_to(values(address), sizes)[is_true].astype(np.int64)
    spans = union([np.stack([first, first + 1], axis=-1)])
    free = [(factor, digit.size) for digit, factor in address.factors.items() if digit not in grid]
    for factor, size in sorted(free, key=lambda repeat: abs(repeat[0])):
        spans = _repeated(spans + min(0, factor * (size - 1)), abs(factor), size)
    return spans


def union(sets: Sequence[Spans]) -> Spans:
    """The intervals of all of them."""
    spans = np.concatenate([np.empty((0, 2), dtype=np.int64), *sets])
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    ends = np.maximum.accumulate(spans[:, 1])
    begins = np.ones(len(spans), dtype=bool)
    begins[1:] = spans[1:, 0] > ends[:-1]
    closes = np.ones(len(spans), dtype=bool)
    closes[:-1] = begins[1:]
    return np.stack([spans[begins, 0], ends[closes]], axis=-1)


def _repeated(spans: Spans, stride: int, times: int) -> Spans:
    if not len(spans):
        return spans
    if (spans[:, 1] - spans[:, 0]).min() >= stride:  # each runs into its own next copy
        return union([spans + np.array([0, stride * (times - 1)])])
    return union([(spans + stride * np.arange(times)[:, None, None]).reshape(-1, 2)])
