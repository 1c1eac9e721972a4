"""The least time that a program takes on a chip, part by part: no kernel is faster than its bytes or its operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.gpu_program.chips import LAUNCH, Backend, Chip
from benchmarks.gpu_program.program import Kernel, Program

TRIGONOMETRY_INSTRUCTIONS = 28
POWER_INSTRUCTIONS = 45
"""Instructions of one evaluation, counted in sm_90 machine code of a kernel with one call: the path of arguments below
105,615, and a constant base whose logarithm four elements share."""


@dataclass(frozen=True)
class Times:
    """Seconds by part.

    Args:
        products: Matrix products.
        attention: Attention, at its assumed rate.
        elementwise: Generated kernels and other calls of libraries, by their bytes.
        recomputed: Sines, cosines and powers, beyond what the same kernels take for their bytes.
    """

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    recomputed: float = 0.0

    def __add__(self, other: Times) -> Times:
        """Both, one after the other."""
        return Times(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def total(self) -> float:
        """All parts."""
        return self.products + self.attention + self.elementwise + self.recomputed


def product_seconds(operations: float, num_bytes: float, chip: Chip, at_ceiling: bool = False) -> float:
    """Seconds of a matrix product: its operations or its bytes, whichever takes longer."""
    rate = chip.product_ceiling if at_ceiling else chip.products
    return max(LAUNCH, operations / rate, num_bytes / chip.copy)


def kernel_seconds(kernel: Kernel, chip: Chip) -> tuple[float, float]:
    """Seconds of a launch by its bytes, and by how much its sines, cosines and powers exceed them."""
    by_bytes = max(LAUNCH, kernel.bytes / chip.copy)
    evaluated = kernel.trigonometry * TRIGONOMETRY_INSTRUCTIONS + kernel.powers * POWER_INSTRUCTIONS
    return by_bytes, max(0.0, kernel.elements * evaluated / chip.instructions - by_bytes)


def program_times(program: Program, chip: Chip, backend: Backend, at_ceiling: bool = False) -> Times:
    """Seconds of a program by part.

    Args:
        program: The program.
        chip: What runs it.
        backend: What computes attention.
        at_ceiling: Whether matrix products reach the most that the chip was seen to reach, instead of what is usual.
    """
    rate = chip.attention[backend]
    kernels = [(kernel.launches, *kernel_seconds(kernel, chip)) for kernel in program.kernels]
    return Times(
        products=sum(p.calls * product_seconds(p.operations, p.bytes, chip, at_ceiling) for p in program.products),
        attention=sum(
            a.calls * a.operations / (rate.backward if a.backward else rate.forward) for a in program.attention
        ),
        elementwise=sum(n * by_bytes for n, by_bytes, _ in kernels)
        + sum(other.calls * max(LAUNCH, other.bytes / chip.copy) for other in program.others),
        recomputed=sum(n * excess for n, _, excess in kernels),
    )


def update_seconds(calls: Iterable[Mapping[str, Any]], chip: Chip) -> float:
    """Seconds of clipping and the optimizers, from their operator calls (``eager.Call``)."""
    return sum(
        max(call["launches"] * LAUNCH, call["operations"] / chip.products, call["bytes"] / chip.copy) for call in calls
    )


def all_reduce_seconds(num_bytes: float, num_ranks: int, chip: Chip) -> float:
    """Seconds in which a ring of ranks sums ``num_bytes``: each passes on all but its own part, twice."""
    return 2 * num_bytes * (num_ranks - 1) / num_ranks / chip.link
