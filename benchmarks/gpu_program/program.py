"""What a generated program launches: read from Inductor's output, Python source with Triton kernels in it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_program.touched import bytes_touched

KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.MULTILINE | re.DOTALL)
LAUNCH = re.compile(r"^\s+(\w+)\.run\(", re.MULTILINE)
PARTIAL_SUMS = re.compile(r"^\s+\w+ = workspace_\d+\[.*?\]\.view\((\d+), (\d+)\)\.sum\(dim=0\)", re.MULTILINE)
"""A sum over what the blocks of a kernel left, which Inductor leaves to torch; float32 [blocks, columns]."""

SIZE = re.compile(r"^    (?:x|y|z|r\d+_)numel = (\d+)$", re.MULTILINE)
FLOAT64 = re.compile(r"tl\.float64|\*fp64")
TRIGONOMETRY = re.compile(r"(?:tl_math|libdevice)\.(?:cos|sin)\(")
POWER = re.compile(r"libdevice\.pow\(")
PRODUCT = re.compile(r"(?:\b|_)mm\b|\b(?:bmm|addmm|baddbmm)\b")
OWN = "custom_kernel=True"
"""What marks a kernel of the project's own, which is among the calls of libraries."""


@dataclass(frozen=True)
class Kernel:
    """A generated Triton kernel.

    Args:
        name: Inductor's name, which lists what it fuses.
        launches: How often the program launches it.
        bytes: What a launch reads and writes; of a slice, what is in it.
        elements: Elements that a launch goes through, reduced ones included.
        trigonometry: Sines and cosines computed for each element.
        powers: Powers with a variable exponent computed for each element.
        float64: Whether it computes in float64.
        source: Its Triton source.
    """

    name: str
    launches: int
    bytes: int
    elements: int
    trigonometry: int
    powers: int
    float64: bool
    source: str


@dataclass(frozen=True)
class Product:
    """Calls of a matrix product of a library or of the project's own, all of one shape.

    Args:
        shape: Rows, summed dimension and columns.
        calls: How often it is called.
        operations: Floating-point operations of a call.
        bytes: What a call reads and writes.
    """

    shape: tuple[int, int, int]
    calls: int
    operations: int
    bytes: int


@dataclass(frozen=True)
class Attention:
    """Calls of a library's attention, all alike.

    Args:
        backward: Whether they compute gradients.
        calls: How often it is called.
        operations: Floating-point operations of a call, those that causality spares left out.
    """

    backward: bool
    calls: int
    operations: int


@dataclass(frozen=True)
class Other:
    """Calls of any other operator of a library, all alike.

    Args:
        name: The operator.
        calls: How often it is called.
        bytes: What a call reads and writes.
    """

    name: str
    calls: int
    bytes: int


@dataclass(frozen=True)
class Program:
    """One graph's program.

    Args:
        kernels: Its Triton kernels.
        products: Its matrix products.
        attention: Its calls of attention.
        others: Its other calls of libraries.
    """

    kernels: tuple[Kernel, ...]
    products: tuple[Product, ...]
    attention: tuple[Attention, ...]
    others: tuple[Other, ...]

    @property
    def launches(self) -> int:
        """Launches of Triton kernels."""
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def num_products(self) -> int:
        """Calls of matrix products."""
        return sum(product.calls for product in self.products)

    @property
    def num_calls(self) -> int:
        """All that the host launches, each call of a library as one launch."""
        calls = [call.calls for call in self.products] + [call.calls for call in self.attention]
        return self.launches + sum(calls) + sum(call.calls for call in self.others)

    @property
    def bytes(self) -> int:
        """Bytes that the Triton kernels and the other calls read and write."""
        kernels = sum(kernel.launches * kernel.bytes for kernel in self.kernels)
        return kernels + sum(other.calls * other.bytes for other in self.others)


def read_program(code: str, externs: Sequence[Mapping[str, Any]]) -> Program:
    """The program in generated code, with its calls of libraries as ``compiler.describe`` gives them."""
    products = Counter(_product(op) for op in externs if PRODUCT.search(op["name"]))
    attention = Counter(_attention(op) for op in externs if "attention" in op["name"])
    others = Counter(
        (op["name"], op["bytes"]) for op in externs if not PRODUCT.search(op["name"]) and "attention" not in op["name"]
    )
    for rows, columns in PARTIAL_SUMS.findall(code):
        others["sum of partial sums", 4 * (int(rows) + 1) * int(columns)] += 1
    return Program(
        kernels=read_kernels(code),
        products=tuple(Product(shape, calls, *costs) for (shape, *costs), calls in products.items()),
        attention=tuple(Attention(backward, calls, cost) for (backward, cost), calls in attention.items()),
        others=tuple(Other(name, calls, num_bytes) for (name, num_bytes), calls in others.items()),
    )


def read_kernels(code: str) -> tuple[Kernel, ...]:
    """The Triton kernels that the compiler generated, in the order of their first launch."""
    # A kernel's own source holds an example launch, so launches are looked for behind the last kernel.
    launches = Counter(LAUNCH.findall(code[code.rindex("async_compile.wait(") :]))
    sources = dict(KERNEL.findall(code))
    unknown = launches.keys() - sources.keys()
    assert not unknown, f"launched, but not defined as generated kernels are: {sorted(unknown)}"
    return tuple(_kernel(name, sources[name], count) for name, count in launches.items() if OWN not in sources[name])


def _kernel(name: str, source: str, launches: int) -> Kernel:
    return Kernel(
        name=name,
        launches=launches,
        bytes=bytes_touched(source),
        elements=math.prod(map(int, SIZE.findall(source))),
        trigonometry=len(TRIGONOMETRY.findall(source)),
        powers=len(POWER.findall(source)),
        float64=bool(FLOAT64.search(source)),
        source=source,
    )


def _product(op: Mapping[str, Any]) -> tuple[tuple[int, int, int], int, int]:
    """Shape, operations and bytes of a matrix product."""
    a, b = [shape for shape in op["inputs"] if shape is not None][-2:]  # behind what the product is added to
    batch = math.prod(a[:-2])
    rows, summed, columns = a[-2], a[-1], b[-1]
    return (rows, summed, columns), 2 * batch * rows * summed * columns, op["bytes"]


def _attention(op: Mapping[str, Any]) -> tuple[bool, int]:
    """Whether a call computes gradients, and its operations.

    Two products forward and five backward; half of the square where queries and keys are the same positions.
    """
    shapes = [shape for shape in op["inputs"] if shape is not None and len(shape) == 4]
    backward = "backward" in op["name"]
    queries, keys = shapes[1:3] if backward else shapes[:2]  # the output's gradient comes before them
    batch, heads, num_queries, width = queries
    square = num_queries * keys[-2]
    if num_queries == keys[-2]:
        square //= 2
    return backward, (5 if backward else 2) * 2 * batch * heads * square * width
