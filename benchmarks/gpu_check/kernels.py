"""Which part of a step a GPU's kernel belongs to, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

KINDS = {
    "attention": r"sdpa|flash|fmha|attention",
    "products": r"gemm|nvjet|cutlass|cublas|splitK",
    "elementwise": r"^triton_",
}
"""Patterns by kind, the first that matches decides: attention's kernels name their matrix products too."""


def kind_of(kernel: str) -> str:
    """attention, products, elementwise (what the compiler generated) or other."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def milliseconds_by_kind(kernels: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Time of all kernels of each kind, from rows of a name and its milliseconds."""
    times = dict.fromkeys((*KINDS, "other"), 0.0)
    for kernel in kernels:
        times[kind_of(kernel["name"])] += kernel["ms"]
    return times
