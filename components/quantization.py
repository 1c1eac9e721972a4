"""How a weight is stored, and the one quantizer that late QAT and export share.

A quantized matrix is int8 codes with one float16 scale a row; its value is ``code * scale``. The product of a code (at
most 8 bits) and a float16 scale (11 bits) is exact in float32, so a dequantized weight is the same on every device.

Every step here has one result whatever runs it: eager or compiled, CPU or CUDA. Three things would break that, and
shape the arithmetic below. Compiled CUDA code divides float32 approximately; eager CUDA divides by a Python number by
multiplying with its reciprocal; and the compiler drops a rounding through float16 as a needless conversion. Hence
quotients are taken in float64 and rounded to float32, which gives the correctly rounded float32 quotient even where
the float64 one is a unit off (numerator and divisor are too short to come that near to a float32 midpoint), and the
rounding to float16 is done on the bits.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

LARGEST_FLOAT16_TENSOR = 65_536
"""Tensors of at most this many elements stay in float16."""

INT8_PERCENTILE = 0.9999984
"""Share of a row's magnitudes, by linear interpolation, that int8 storage keeps unclipped."""

_BLOCK_MATRIX = re.compile(r"blocks\.(\d+)\.(attn|mlp)\.(\w+)\.weight")
_SMALLEST_SCALE = torch.finfo(torch.float16).smallest_normal


class Storage(StrEnum):
    """How the artifact stores a tensor: quantized per output row, or as float16."""

    INT5 = "int5"
    INT6 = "int6"
    INT8 = "int8"
    FLOAT16 = "float16"


_LARGEST_CODE = {Storage.INT5: 15, Storage.INT6: 31, Storage.INT8: 127}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as an artifact holds it.

    Attributes:
        storage: how its values are written.
        values: the int8 codes [rows, cols] of a quantized matrix, or the float16 values of any shape.
        scales: float16 [rows] of a quantized matrix, else None.
    """

    storage: Storage
    values: Tensor
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        """Assert that the parts fit together."""
        if self.storage is Storage.FLOAT16:
            assert self.values.dtype == torch.float16
            assert self.scales is None
        else:
            assert self.values.dtype == torch.int8
            assert self.values.ndim == 2
            assert self.scales is not None
            assert self.scales.dtype == torch.float16
            assert self.scales.shape == self.values.shape[:1]

    @property
    def num_bytes(self) -> int:
        """Bytes of the values and scales before compression."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def is_sound(self) -> bool:
        """Whether every number is finite and every code one that `quantize` may give."""
        floats = self.values if self.scales is None else self.scales
        if not floats.isfinite().all():
            return False
        if self.scales is None or self.values.numel() == 0:
            return True
        largest = _LARGEST_CODE[self.storage]
        smallest = -largest if self.storage is Storage.INT8 else -largest - 1
        return bool(smallest <= self.values.min() and self.values.max() <= largest)

    def dequantize(self) -> Tensor:
        """The float32 tensor that these values stand for."""
        if self.scales is None:
            return self.values.float()
        return _dequantize(self.values, self.scales.float())


def storage_of(name: str, shape: Sequence[int], num_layers: int, keep_last_k_fp16: int = 1) -> Storage:
    """How export stores the tensor called `name`.

    Args:
        name: the parameter's name in the network, such as ``blocks.0.mlp.fc.weight``.
        shape: its shape.
        num_layers: number of blocks of the network.
        keep_last_k_fp16: the key projections of this many last blocks stay in float16.
    """
    if math.prod(shape) <= LARGEST_FLOAT16_TENSOR or name == "tok_emb.weight":
        return Storage.FLOAT16
    match = _BLOCK_MATRIX.fullmatch(name)
    if match and match[2] == "mlp":
        return Storage.INT5
    if match:
        kept = match[3] == "c_k" and int(match[1]) >= num_layers - keep_last_k_fp16
        return Storage.FLOAT16 if kept else Storage.INT6
    # Per-row scales need rows: a large tensor of another rank has none.
    return Storage.INT8 if len(shape) == 2 else Storage.FLOAT16


def quantize(weight: Tensor, storage: Storage) -> StoredTensor:
    """Store `weight`, per output row where `storage` is quantized.

    int5 and int6: ``scale = float16(max|row| / c)``, ``code = clamp(round(row / scale), -(c + 1), c)`` with c = 15 or
    31. int8: the row is clipped at its `INT8_PERCENTILE`, ``scale = max(clip, 1) / 127``, codes by the float32 scale,
    of which the float16 is stored (the public exporter's rule). Halves round to even. int5 and int6 scales are at
    least the smallest normal float16, so a row of zeros stays one. A value that is not finite, or a scale that
    overflows float16, gives a row that is not finite.

    Args:
        weight: float tensor, [rows, cols] unless `storage` is float16.
        storage: how to store it.
    """
    weight = weight.detach()
    if storage is Storage.FLOAT16:
        return StoredTensor(storage, weight.to(torch.float16))
    codes, scales = _codes_and_scales(weight, storage)
    return StoredTensor(storage, codes, scales.to(torch.float16))


def fake_quantize(weight: Tensor, storage: Storage) -> Tensor:
    """The float32 value that export would give `weight`, bit for bit, with the gradient passed straight through.

    Float16 storage leaves the weight untouched. Source of the estimator: Bengio, Leonard and Courville (2013),
    https://arxiv.org/abs/1308.3432.

    Args:
        weight: float32 [rows, cols].
        storage: how export will store it.
    """
    if storage is Storage.FLOAT16:
        return weight
    dequantized = _dequantize(*_codes_and_scales(weight.detach(), storage))
    # The bracket is exactly zero, and carries the gradient.
    return dequantized + (weight - weight.detach())


def _codes_and_scales(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, cols] and float32 scales [rows] that float16 holds exactly."""
    weight = weight.float()
    largest = _LARGEST_CODE[storage]
    if storage is Storage.INT8:
        clip = _row_clip(weight)
        scales = _divide(clip.clamp_min(1.0), largest)
        clipped = torch.minimum(torch.maximum(weight, -clip[:, None]), clip[:, None])
        return _codes(clipped, scales, -largest, largest), _round_to_float16(scales)
    scales = _round_to_float16(_divide(weight.abs().amax(dim=1), largest).clamp_min(_SMALLEST_SCALE))
    return _codes(weight, scales, -largest - 1, largest), scales


def _dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales[:, None]


def _divide(values: Tensor, divisor: int) -> Tensor:
    """The correctly rounded float32 quotient."""
    return (values.double() / divisor).float()


def _codes(weight: Tensor, scales: Tensor, smallest: int, largest: int) -> Tensor:
    """Each row over its scale, as the correctly rounded float32 quotient, rounded to int8 codes."""
    quotients = (weight.double() * scales.double().reciprocal()[:, None]).float()
    return quotients.round().clamp(smallest, largest).to(torch.int8)


def _round_to_float16(values: Tensor) -> Tensor:
    """Round positive float32 values from float16's normal range to the nearest float16, halves to even, as float32."""
    bits = values.view(torch.int32)
    dropped = 13  # bits of the float32 fraction that float16 lacks
    to_even = (bits >> dropped) & 1
    rounded = (((bits + ((1 << (dropped - 1)) - 1) + to_even) >> dropped) << dropped).view(torch.float32)
    # The addition would wrap the bits of some NaNs round to zero, and hide them.
    return torch.where(values.isfinite(), rounded, values)


def _row_clip(weight: Tensor) -> Tensor:
    """Each row's `INT8_PERCENTILE` of magnitudes, float32 [rows], as ``torch.quantile`` interpolates it.

    ``torch.quantile`` itself takes no tensor over 16 million elements. The percentile lies between the two largest
    magnitudes of any row under 625,000 columns.
    """
    cols = weight.shape[1]
    assert cols < 625_000
    rank = float(np.float32(INT8_PERCENTILE) * np.float32(cols - 1))
    top = weight.abs().topk(min(2, cols), dim=1).values
    largest, second = top[:, 0], top[:, -1]
    # Through float64, so that no compiler fuses product and difference into one rounding.
    return largest - ((largest - second).double() * (math.ceil(rank) - rank)).float()
