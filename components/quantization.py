"""Rounding of weights: the one quantizer that late QAT and export share.

A quantized matrix is int8 codes with one float16 scale per row; its value is ``code * scale``. The product of a code
(at most 8 bits) and a float16 scale (11 bits) is exact in float32, so a dequantized weight is the same on all devices.

Every step here gives the same result eager or compiled, on CPU or CUDA. Three things would break that. Compiled CUDA
code divides float32 approximately. Eager CUDA divides by a Python number by multiplying by its reciprocal. The
compiler drops a rounding through float16 as a needless conversion. So quotients are computed in float64 and rounded to
float32. That is the correctly rounded float32 quotient even if the float64 one is a unit off: numerator and divisor
are too short to come that near to a float32 midpoint. Rounding to float16 is done on the bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from components.errors import UserError
from components.storage import Storage

if TYPE_CHECKING:
    from components.gpt import GPT

INT8_PERCENTILE = 0.9999984
"""Share of a row's magnitudes, by linear interpolation, that int8 storage keeps unclipped."""

SMALLEST_SCALE = torch.finfo(torch.float16).smallest_normal
"""The smallest scale of a row, so that a zero row can be divided by it; the public rule's int8 rows have 1/127."""

LARGEST_CODE = {Storage.INT5: 15, Storage.INT6: 31, Storage.INT7: 63, Storage.INT8: 127}
"""The largest code of each quantized storage."""


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
        """Whether every number is finite and every code is one that `quantize` can give."""
        floats = self.values if self.scales is None else self.scales
        if not floats.isfinite().all():
            return False
        if self.scales is None or self.values.numel() == 0:
            return True
        largest = LARGEST_CODE[self.storage]
        smallest = -largest if self.storage is Storage.INT8 else -largest - 1
        return bool(smallest <= self.values.min() and self.values.max() <= largest)

    def dequantize(self) -> Tensor:
        """The float32 tensor that these values represent."""
        if self.scales is None:
            return self.values.float()
        return _dequantize(self.values, self.scales.float())

    def relative_error(self, weight: Tensor) -> float:
        """Norm of the difference from the float weight, over that weight's norm; 0 for no error."""
        weight = weight.detach().to(self.values.device, torch.float32)
        return ((self.dequantize() - weight).norm() / weight.norm().clamp_min(1e-30)).item()


class Quantizer(ABC):
    """Decides the codes and scales of the matrices that an artifact stores.

    The default is `Nearest`. ``--export.quantizer CLASS`` selects a quantizer with another rounding rule.

    Attributes:
        calibration_batches: Micro-batches of training data, over all ranks, that it must see before it quantizes; 0
            if it uses only the weights.
    """

    calibration_batches: int = 0

    def calibrate(self, network: GPT, batches: Iterable[Tensor]) -> None:  # noqa: B027 (nothing to do is the default)
        """Observe a network's computation before `quantize_all` is called with the same weights.

        Every rank calls, with its own batches.

        Args:
            network: The network, with the weights to quantize.
            batches: int64 ids [B, T] on the network's device, this rank's share of `calibration_batches`.
        """

    def share_calibration(self, other: Quantizer) -> bool:
        """Take what another quantizer observed of the same network, if `calibrate` would observe just that.

        Returns:
            Whether this replaces `calibrate`.
        """
        return False

    @abstractmethod
    def quantize_all(self, matrices: Mapping[str, Tensor], storages: Mapping[str, Storage]) -> dict[str, StoredTensor]:
        """Store all matrices at once, so that those of one shape can share work.

        Every rank calls with the same matrices and must return the same result.

        Args:
            matrices: float [rows, cols] by their names in the network, on any device.
            storages: how to store each of them; never float16.
        """

    @abstractmethod
    def fake_quantize(self, weight: Tensor, storage: Storage) -> Tensor:
        """The float32 [rows, cols] that `quantize_all` would store, with the gradient passed straight through."""


class Nearest(Quantizer):
    """Round every weight to the nearest code; see `quantize`.

    Args:
        row_max_floor: An int5, int6 or int7 row whose largest magnitude is below this is scaled as if it were this; 0
            for none. The March 21 and April 1 records use 1: no int6 scale is below 1/31. Int8 rows always use 1.
    """

    def __init__(self, row_max_floor: float = 0.0) -> None:
        check_row_max_floor(row_max_floor)
        self.row_max_floor = row_max_floor

    def quantize_all(self, matrices: Mapping[str, Tensor], storages: Mapping[str, Storage]) -> dict[str, StoredTensor]:
        """Store each matrix separately."""
        return {name: quantize(matrix.cpu(), storages[name], self.row_max_floor) for name, matrix in matrices.items()}

    def fake_quantize(self, weight: Tensor, storage: Storage) -> Tensor:
        """What `quantize` stores, bit for bit; see the function of this name."""
        return fake_quantize(weight, storage, self.row_max_floor)


def store(
    weights: Mapping[str, Tensor], storages: Mapping[str, Storage], quantizer: Quantizer
) -> dict[str, StoredTensor]:
    """Each weight as export stores it, in the order given.

    Args:
        weights: float tensors by their names in the network, on any device.
        storages: how each of them is stored.
        quantizer: the quantizer for the quantized ones.

    Raises:
        UserError: a weight is not finite, or beyond the range of float16.
    """
    matrices = {name: weight for name, weight in weights.items() if storages[name] is not Storage.FLOAT16}
    quantized = quantizer.quantize_all(matrices, {name: storages[name] for name in matrices})
    stored = {
        name: quantized[name] if name in quantized else quantize(weight.cpu(), Storage.FLOAT16)
        for name, weight in weights.items()
    }
    for name, tensor in stored.items():
        if not tensor.is_sound():
            raise UserError(
                f"{name} holds values that are not finite or too large for float16, so it cannot be exported; "
                "train again with a lower learning rate or from an earlier checkpoint."
            )
    return stored


def load_state(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """The float32 weights that stored tensors represent, by name."""
    return {name: tensor.dequantize() for name, tensor in tensors.items()}


def quantize(weight: Tensor, storage: Storage, row_max_floor: float = 0.0) -> StoredTensor:
    """Store `weight`, per output row if `storage` is quantized.

    int5, int6 and int7: ``scale = float16(max(max|row|, floor) / c)`` with c = 15, 31 or 63,
    ``code = clamp(round(row / scale), -(c + 1), c)``. int8: the row is clipped at its `INT8_PERCENTILE`,
    ``scale = max(clip, 1) / 127``; codes use the float32 scale, which is stored as float16 (the public exporter's
    rule). Halves round to even. Scales are at least the smallest normal float16, so a zero row stays zero. A nonfinite
    value, or a scale that overflows float16, gives a nonfinite row.

    Args:
        weight: float tensor, [rows, cols] unless `storage` is float16.
        storage: how to store it.
        row_max_floor: the floor of int5, int6 and int7 rows.
    """
    weight = weight.detach()
    if storage is Storage.FLOAT16:
        return StoredTensor(storage, weight.to(torch.float16))
    codes, scales = _codes_and_scales(weight, storage, row_max_floor)
    return StoredTensor(storage, codes, scales.to(torch.float16))


def fake_quantize(weight: Tensor, storage: Storage, row_max_floor: float = 0.0) -> Tensor:
    """The float32 value that export would give `weight`, bit for bit, with the gradient passed straight through.

    Float16 storage leaves the weight untouched. Source of the estimator: Bengio, Leonard and Courville (2013),
    https://arxiv.org/abs/1308.3432.

    Args:
        weight: float32 [rows, cols].
        storage: how export will store it.
        row_max_floor: the floor of int5, int6 and int7 rows.
    """
    if storage is Storage.FLOAT16:
        return weight
    dequantized = _dequantize(*_codes_and_scales(weight.detach(), storage, row_max_floor))
    # The bracket is exactly zero, and carries the gradient.
    return dequantized + (weight - weight.detach())


def check_row_max_floor(row_max_floor: float) -> None:
    """Reject a floor that is not a magnitude.

    Raises:
        UserError: The floor is negative, or beyond the range of float16.
    """
    if not 0 <= row_max_floor <= torch.finfo(torch.float16).max:
        raise UserError(
            f"export.quantizer.row_max_floor is {row_max_floor}; set the least magnitude that a row is scaled by, from "
            "0 (none) to 65504."
        )


def row_max_scales(weight: Tensor, storage: Storage, floor: float) -> Tensor:
    """Row maximum, at least the floor, over the largest code: float32 [rows], exact in float16."""
    row_max = weight.float().abs().amax(dim=1).clamp_min(floor)
    return round_to_float16(_divide(row_max, LARGEST_CODE[storage]).clamp_min(SMALLEST_SCALE))


def _codes_and_scales(weight: Tensor, storage: Storage, row_max_floor: float) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, cols] and float32 scales [rows], exact in float16."""
    weight = weight.float()
    largest = LARGEST_CODE[storage]
    if storage is Storage.INT8:
        clip = _row_clip(weight)
        scales = _divide(clip.clamp_min(1.0), largest)
        clipped = torch.minimum(torch.maximum(weight, -clip[:, None]), clip[:, None])
        return _codes(clipped, scales, -largest, largest), round_to_float16(scales)
    scales = row_max_scales(weight, storage, row_max_floor)
    return _codes(weight, scales, -largest - 1, largest), scales


def _dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales[:, None]


def _divide(values: Tensor, divisor: int) -> Tensor:
    """The correctly rounded float32 quotient."""
    return (values.double() / divisor).float()


def _codes(weight: Tensor, scales: Tensor, smallest: int, largest: int) -> Tensor:
    """Each row divided by its scale, correctly rounded to float32 and then to int8 codes."""
    quotients = (weight.double() * scales.double().reciprocal()[:, None]).float()
    return quotients.round().clamp(smallest, largest).to(torch.int8)


def round_to_float16(values: Tensor) -> Tensor:
    """Round positive float32 values from float16's normal range to the nearest float16, halves to even, as float32."""
    bits = values.view(torch.int32)
    dropped = 13  # bits of the float32 fraction that float16 lacks
    to_even = (bits >> dropped) & 1
    rounded = (((bits + ((1 << (dropped - 1)) - 1) + to_even) >> dropped) << dropped).view(torch.float32)
    # The addition would wrap the bits of some NaNs to zero and hide them.
    return torch.where(values.isfinite(), rounded, values)


def _row_clip(weight: Tensor) -> Tensor:
    """Each row's `INT8_PERCENTILE` of magnitudes, float32 [rows], as ``torch.quantile`` interpolates it.

    ``torch.quantile`` itself rejects tensors over 16 million elements. The percentile lies between the two largest
    magnitudes of any row under 625,000 columns.
    """
    cols = weight.shape[1]
    assert cols < 625_000
    rank = float(np.float32(INT8_PERCENTILE) * np.float32(cols - 1))
    top = weight.abs().topk(min(2, cols), dim=1).values
    largest, second = top[:, 0], top[:, -1]
    # Uses float64 so that no compiler fuses product and difference into one rounding.
    return largest - ((largest - second).double() * (math.ceil(rank) - rank)).float()
