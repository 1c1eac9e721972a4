"""How many bytes a Triton kernel reads and writes, from the addresses in its source.

Inductor's own estimate counts some buffers as a whole of which a kernel touches a slice. Here an element counts once
however often a kernel reads it, and once more if it is written, as if caches kept all that one launch reads again.
Reading back what the launch itself has just written costs nothing.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_program.indices import (
    EVERYWHERE,
    NOWHERE,
    Affine,
    Condition,
    Digit,
    compared,
    num_points,
    reached,
    union,
)

INDEX = re.compile(r"([xyz]|r\d+_)index")
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
MEMORY = re.compile(r"load|store|atomic|descriptor|block_ptr|inline_asm")
"""Names of operations that address memory, or may."""


@dataclass(frozen=True)
class Data:
    """A value that the source alone does not tell.

    Args:
        digits: What it depends on.
        addresses: Whether it may be part of an address: it was read from memory, or tells programs apart.
    """

    digits: frozenset[Digit] = frozenset()
    addresses: bool = False


@dataclass(frozen=True)
class Pointer:
    """An address in a kernel's argument, counted in elements."""

    argument: str
    offset: Affine | Data


Value = Affine | Condition | Data | Pointer


@dataclass(frozen=True)
class Access:
    """Reading or writing a kernel's argument, wherever a condition holds."""

    offset: Affine | Data
    where: Condition
    writes: bool


@dataclass(frozen=True)
class Buffer:
    """A tensor that a kernel is given.

    Args:
        elements: How many it has.
        extent: Elements from its first to behind its last, those of other tensors between them included.
        itemsize: Bytes of an element.
    """

    elements: int
    extent: int
    itemsize: int


def bytes_touched(source: str) -> int:
    """Bytes that one launch reads and writes.

    An index that is read from memory, as a table's rows are, may reach any element: it counts the accesses, at most
    the whole buffer. A mask that depends on data counts as true.

    Args:
        source: A kernel's source as Inductor writes it, with ``get_args`` behind the kernel.
    """
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    [kernel] = [function for function in functions.values() if function.decorator_list]
    assert "get_args" in functions, "the kernel's arguments are not beside it; Inductor's benchmark_kernel is off"
    names = [argument.arg for argument in kernel.args.args]
    # The arguments come in the kernel's order, and sizes behind the tensors.
    buffers = dict(zip(names, read_buffers(functions["get_args"]), strict=False))
    reader = _Reader(buffers)
    for statement in kernel.body:
        reader.run(statement)
    assert reader.accesses.keys() == buffers.keys(), f"never accessed: {buffers.keys() - reader.accesses.keys()}"
    return sum(
        buffers[name].itemsize * num_elements([a for a in accesses if a.writes is writes], buffers[name])
        for name, accesses in reader.accesses.items()
        for writes in (False, True)
    )


def read_buffers(get_args: ast.FunctionDef) -> list[Buffer]:
    """The tensors that Inductor makes to try a kernel with."""
    calls = [node.value for node in get_args.body if isinstance(node, ast.Assign)]
    return [_buffer(call) for call in calls if isinstance(call, ast.Call)]


def _buffer(call: ast.Call) -> Buffer:
    made_by = ast.unparse(call.func)
    assert made_by in ("rand_strided", "torch.zeros"), f"an argument made by {made_by}"
    [dtype] = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "dtype"]
    itemsize = getattr(torch, dtype.removeprefix("torch.")).itemsize
    sizes, *strides = map(ast.literal_eval, call.args)
    if not strides:
        return Buffer(sizes, sizes, itemsize)
    dims = list(zip(sizes, strides[0], strict=True))
    extent = 1 + sum((size - 1) * stride for size, stride in dims)
    return Buffer(math.prod(size for size, stride in dims if stride), extent, itemsize)


def num_elements(accesses: Sequence[Access], buffer: Buffer) -> int:
    """Distinct elements of a buffer in some accesses; of those whose addresses are data, at most so many."""
    spans = union([reached(a.offset, a.where) for a in accesses if isinstance(a.offset, Affine)])
    if len(spans):
        assert spans[0, 0] >= 0, f"an address of {spans[0, 0]}"
        assert spans[-1, 1] <= buffer.extent, f"an address of {spans[-1, 1] - 1} in {buffer.extent} elements"
    gathered = sum(num_points(a.offset.digits) for a in accesses if isinstance(a.offset, Data))
    return min(buffer.elements, int((spans[:, 1] - spans[:, 0]).sum()) + gathered)


def _digits(value: Value) -> frozenset[Digit]:
    if isinstance(value, Affine):
        return frozenset(value.factors)
    if isinstance(value, Condition):
        return frozenset(digit for part in value.parts for digit in part.factors)
    assert isinstance(value, Data), "a pointer goes to what only reads and writes"
    return value.digits


def _data(*values: Value) -> Data:
    """What is computed from some values."""
    digits: frozenset[Digit] = frozenset()
    return Data(digits.union(*map(_digits, values)), any(isinstance(v, Data) and v.addresses for v in values))


class _Reader:
    """Goes through a kernel once, as its statements stand, and notes every access; a loop's body is one pass."""

    def __init__(self, buffers: Mapping[str, Buffer]) -> None:
        self.values: dict[str, Value] = {name: Pointer(name, Affine(0)) for name in buffers}
        self.accesses: dict[str, list[Access]] = defaultdict(list)

    def run(self, statement: ast.stmt) -> None:
        """Carry out a statement."""
        if isinstance(statement, ast.For):
            self._assign(statement.target, Data())
            for inner in statement.body:
                self.run(inner)
        elif isinstance(statement, ast.Assign):
            [target] = statement.targets
            self._assign(target, self.value(statement.value))
        elif isinstance(statement, ast.AnnAssign):
            assert statement.value is not None, "Inductor declares nothing without a value"
            self._assign(statement.target, self.value(statement.value))
        elif isinstance(statement, ast.AugAssign):
            self._assign(statement.target, _data(self.value(statement.target), self.value(statement.value)))
        else:
            assert isinstance(statement, ast.Expr), f"a statement that was not expected: {ast.unparse(statement)}"
            self.value(statement.value)

    def _assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Tuple):
            for part in target.elts:
                self._assign(part, _data(value))
            return
        assert isinstance(target, ast.Name), f"a target that was not expected: {ast.unparse(target)}"
        found = INDEX.fullmatch(target.id)
        self.values[target.id] = self._whole_range(found[1]) if found else value

    def _whole_range(self, prefix: str) -> Affine:
        """An index variable: all programs and all turns of a loop together go through its whole range."""
        size = self.values[f"{prefix}numel"]
        assert isinstance(size, Affine), f"{prefix}numel is no number"
        assert not size.factors, f"{prefix}numel is no number"
        return Affine(0, {Digit(prefix, 1, size.constant): 1} if size.constant > 1 else {})

    def value(self, node: ast.expr) -> Value:
        """An expression's value."""
        if isinstance(node, ast.Name):
            return self.values.get(node.id, Data())
        if isinstance(node, ast.Constant):
            if isinstance(node.value, bool):
                return EVERYWHERE if node.value else NOWHERE
            return Affine(node.value) if isinstance(node.value, int) else Data()
        if isinstance(node, ast.Subscript):
            return self.value(node.value)  # [:, None]
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp):
            return _binary(node.op, self.value(node.left), self.value(node.right))
        if isinstance(node, ast.UnaryOp):
            return _unary(node.op, self.value(node.operand))
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            left, right = self.value(node.left), self.value(node.comparators[0])
            if isinstance(left, Affine) and isinstance(right, Affine):
                return compared(left, right, COMPARISONS[type(node.ops[0])])
            return _data(left, right)
        return _data(*(self.value(child) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)))

    def _call(self, node: ast.Call) -> Value:
        name = ast.unparse(node.func)
        if name in ("tl.load", "tl.store", "tl.atomic_add"):
            return self._access(name, node)
        assert not MEMORY.search(name.rpartition(".")[2]), f"memory is addressed by {name}, which is not counted"
        if name == "tl.full":
            return self.value(node.args[1])
        if name == "tl.broadcast_to":
            return self.value(node.args[0])
        if name == "tl.program_id":
            return _data(self._whole_range("x"), Data(addresses=True))
        arguments = [self.value(argument) for argument in (*node.args, *(keyword.value for keyword in node.keywords))]
        if not isinstance(node.func, ast.Attribute):
            return _data(*arguments)
        of = self.value(node.func.value)  # a value, if this is a method of it, or a module
        to_integer = node.func.attr == "to" and ast.unparse(node.args[0]).startswith("tl.int")
        return of if to_integer or node.func.attr == "broadcast_to" else _data(of, *arguments)

    def _access(self, name: str, node: ast.Call) -> Data:
        pointer, *rest = [self.value(argument) for argument in node.args]
        mask_at = 0 if name == "tl.load" else 1  # behind what is written
        mask = rest[mask_at] if len(rest) > mask_at else EVERYWHERE
        where = mask if isinstance(mask, Condition) else EVERYWHERE
        assert isinstance(pointer, Pointer), f"no pointer to be followed: {ast.unparse(node)}"
        offset = pointer.offset
        assert isinstance(offset, Affine) or offset.addresses, f"no address to be followed: {ast.unparse(node)}"
        accesses, write = self.accesses[pointer.argument], Access(offset, where, writes=True)
        if name != "tl.store" and write not in accesses:
            accesses.append(Access(offset, where, writes=False))
        if name != "tl.load":
            accesses.append(write)
        return Data(_digits(offset) | _digits(where), addresses=True)


def _unary(op: ast.unaryop, of: Value) -> Value:
    if isinstance(op, ast.USub) and isinstance(of, Affine):
        return of.times(-1)
    return ~of if isinstance(op, ast.Invert | ast.Not) and isinstance(of, Condition) else _data(of)


def _binary(op: ast.operator, left: Value, right: Value) -> Value:
    if isinstance(left, Pointer):
        assert isinstance(op, ast.Add), "only sums of pointers and offsets are addresses"
        offset = _binary(op, left.offset, right)
        assert isinstance(offset, Affine | Data), "an offset is a number"
        return Pointer(left.argument, offset)
    if isinstance(left, Affine) and isinstance(right, Affine):
        return _arithmetic(op, left, right)
    if isinstance(op, ast.BitAnd | ast.BitOr) and isinstance(left, Condition) and isinstance(right, Condition):
        return left & right if isinstance(op, ast.BitAnd) else left | right
    if isinstance(op, ast.BitAnd) and isinstance(left, Condition):
        return left
    if isinstance(op, ast.BitAnd) and isinstance(right, Condition):
        return right
    return _data(left, right)


def _arithmetic(op: ast.operator, left: Affine, right: Affine) -> Affine | Data:
    if isinstance(op, ast.Add):
        return left + right
    if isinstance(op, ast.Sub):
        return left + right.times(-1)
    if isinstance(op, ast.Mult) and not (left.factors and right.factors):
        return left.times(right.constant) if not right.factors else right.times(left.constant)
    if isinstance(op, ast.FloorDiv | ast.Mod) and not right.factors and right.constant > 0:
        divided = left.divided(right.constant)
        if divided is not None:
            return divided[isinstance(op, ast.Mod)]
    return _data(left, right)
