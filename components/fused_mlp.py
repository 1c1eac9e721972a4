"""The MLP with the squared ReLU computed inside its matrix products, by a kernel in Triton.

A library's product writes z, and another kernel reads it to write ``max(z, 0)^2``; going back, another kernel reads two
tensors and writes a third. Here each direction writes the hidden layer once, and nothing reads it in between. z is not
rounded in between either.

Shape suffixes: N positions, C model width, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

ROWS, COLUMNS = 128, 256
SUMMED_BYTES = 128
"""A block of the result, and the bytes of its factors' rows that are summed over at a time."""

MODEL_MULTIPLE, HIDDEN_MULTIPLE = 64, COLUMNS
"""Widths must be multiples of these, so that the kernel need not guard its columns."""


_jit: Any = triton.jit if triton else lambda kernel: kernel


@_jit  # type: ignore[untyped-decorator] # Triton has no types
def squared_relu_mm(  # type: ignore[no-untyped-def] # the compiler copies it to where Any is unknown
    out,
    kept,
    left,
    right,
    num_rows,
    stride_summed,
    stride_column,
    num_summed: tl.constexpr,
    num_columns: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    summed: tl.constexpr,
):
    """A block of ``out = max(z, 0)^2``, or with the a that this made, of ``out = z 2 sqrt(a)``; z = left @ right.

    Args:
        out: Pointer to the result, [num_rows, num_columns].
        kept: Pointer to a, of the result's shape, or None.
        left: Pointer to the left factor, [num_rows, num_summed].
        right: Pointer to the right factor, [num_summed, num_columns].
        num_rows: Any number.
        stride_summed: Elements from one row of the right factor to the next.
        stride_column: Elements from one of its columns to the next.
        num_summed: A multiple of ``summed``.
        num_columns: A multiple of ``columns``.
        rows: Rows of a block.
        columns: Columns of a block.
        summed: Elements to sum over at a time.
    """
    # Neighbors share rows of the left factor, which is read from memory once; the right factor fits into the cache.
    block = tl.program_id(0)
    first_row = block // (num_columns // columns) * rows
    column = block % (num_columns // columns) * columns + tl.arange(0, columns)
    row, step = tl.arange(0, rows), tl.arange(0, summed)
    exists = (first_row + row < num_rows)[:, None]
    left_tile = left + first_row.to(tl.int64) * num_summed + row[:, None] * num_summed + step[None, :]
    right_tile = right + step[:, None] * stride_summed + column[None, :] * stride_column
    z = tl.zeros((rows, columns), tl.float32)
    for _ in range(0, num_summed, summed):
        z = tl.dot(tl.load(left_tile, exists, 0.0), tl.load(right_tile), z, input_precision="ieee")
        left_tile += summed
        right_tile += summed * stride_summed
    # The block's start is 64 bits wide: a hidden layer may have more elements than 32 bits count.
    start, tile = first_row.to(tl.int64) * num_columns, row[:, None] * num_columns + column[None, :]
    if kept is None:
        positive = tl.where(z < 0, 0.0, z)  # unlike a maximum, it leaves NaN
        result = positive * positive
    else:
        result = z * (2 * tl.sqrt(tl.load(kept + start + tile, exists, 0.0).to(tl.float32)))
    tl.store(out + start + tile, result.to(out.dtype.element_ty), exists)


def has_triton() -> bool:
    """Whether the kernel can run at all: a CPU build of torch comes without Triton."""
    return triton is not None


def _product(left: Tensor, right: Tensor, kept: Tensor | None) -> Tensor:
    """Launch the kernel; its left factor and a, if any, are contiguous."""
    num_rows, num_summed = left.shape
    num_columns = right.size(1)
    out = left.new_empty(num_rows, num_columns)
    summed = SUMMED_BYTES // left.element_size()
    assert num_summed % summed == num_columns % COLUMNS == 0, "the caller has checked the widths"
    squared_relu_mm[(-(-num_rows // ROWS) * (num_columns // COLUMNS),)](
        out,
        kept,
        left,
        right,
        num_rows,
        right.stride(0),
        right.stride(1),
        num_summed,
        num_columns,
        ROWS,
        COLUMNS,
        summed,
        num_warps=8,
        num_stages=3,
    )
    return out


class _FusedMLP(torch.autograd.Function):
    """See `fused_mlp`."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, fc_HC: Tensor, proj_CH: Tensor) -> Tensor:
        hidden_NH = _product(x_NC, fc_HC.T, None)
        ctx.save_for_backward(x_NC, fc_HC, proj_CH, hidden_NH)
        return hidden_NH @ proj_CH.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_NC, fc_HC, proj_CH, hidden_NH = ctx.saved_tensors
        y_gradient_NC = gradients[0].contiguous()
        z_gradient_NH = _product(y_gradient_NC, proj_CH, hidden_NH)
        return z_gradient_NH @ fc_HC, z_gradient_NH.T @ x_NC, y_gradient_NC.T @ hidden_NH


def fused_mlp(x_NC: Tensor, fc_HC: Tensor, proj_CH: Tensor) -> Tensor:
    """``max(x fc^T, 0)^2 proj^T``, [N, C], summed in float32; it cannot be differentiated twice.

    Args:
        x_NC: Positions, float32 or bfloat16.
        fc_HC: The first weight, in the same dtype; C and H are multiples of MODEL_MULTIPLE and HIDDEN_MULTIPLE.
        proj_CH: The second weight, in the same dtype.
    """
    y_NC: Tensor = _FusedMLP.apply(x_NC.contiguous(), fc_HC.contiguous(), proj_CH.contiguous())
    return y_NC
