"""The statistical model used to code an artifact's weights to near their entropy.

Every tensor is cut into planes: matrices of bytes, each of one kind. A quantized matrix is a plane of int5, int6, int7
or int8 codes [rows, cols]. Its scales, and every float16 tensor, are a plane of high bytes (sign, exponent, two bits of
fraction) and a plane of low bytes (the rest of the fraction). A tensor with fewer than two dimensions counts as one
row; one with more keeps its first dimension as rows.

A weight's size depends mostly on its row and column. Rows differ by how far their largest value stands out, columns by
how strongly their input acts. So each row and column of a plane has a level, in quarter octaves of mean magnitude; a
column's level is what its row levels leave unexplained. Each byte is coded with the frequency table of its kind and of
the sum of its row and column levels. All tensors of a kind share the tables. Low bytes are noise and have no levels.

All arithmetic uses integers, so the same tensors give the same tables and codes on every machine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from components import rans
from components.quantization import Storage, StoredTensor

_LEVELS = 128
_LEAST_LINE = 128  # a row or column with fewer values has no level, which would cost more than it saves


class _Kind(IntEnum):
    """What the bytes of a plane are, in the order in which planes are coded.

    New kinds go at the end, so that older data still decodes.
    """

    INT5 = 0
    INT6 = 1
    INT8 = 2
    HIGH = 3
    LOW = 4
    INT7 = 5


NUM_KINDS = len(_Kind)
"""The number of plane kinds; models made when there were fewer are shorter."""

_CODES = {
    Storage.INT5: _Kind.INT5,
    Storage.INT6: _Kind.INT6,
    Storage.INT7: _Kind.INT7,
    Storage.INT8: _Kind.INT8,
}


@dataclass(frozen=True)
class TensorForm:
    """How a tensor is stored, and its shape."""

    storage: Storage
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _PlaneForm:
    """A plane's kind, shape and tensor."""

    tensor: int
    kind: _Kind
    rows: int
    cols: int

    @property
    def num_values(self) -> int:
        return self.rows * self.cols

    @property
    def num_levels(self) -> int:
        return 0 if self.kind is _Kind.LOW else self.rows + self.cols


@dataclass(frozen=True, eq=False)
class _Fit:
    """Tensors cut into planes, in coded order, and the model fitted to them."""

    planes: list[_PlaneForm]
    levels: list[NDArray[np.int8]]  # of each plane: rows, then columns
    symbols: NDArray[np.uint8]  # of all planes, one after another
    table_of: NDArray[np.uint16]  # of each symbol
    counts: NDArray[np.int64]  # [tables, 256]
    frequencies: NDArray[np.uint16]  # [tables, 256]


def encode_tensors(tensors: Sequence[StoredTensor]) -> tuple[bytes, bytes]:
    """The model of the tensors, and their values coded with it.

    The model, of `model_bytes` bytes, is each plane's levels (int8, rows before columns; none for low bytes), then all
    frequency tables' low bytes, then their high bytes. The caller compresses it. Planes are ordered by kind, then by
    tensor. The values are one stream of `components.rans`.
    """
    fit = _fit(tensors)
    tables = fit.frequencies.astype("<u2").view(np.uint8).reshape(-1, 2).T
    model = b"".join([*(levels.tobytes() for levels in fit.levels), tables.tobytes()])
    return model, rans.encode(fit.symbols, fit.frequencies, fit.table_of)


def model_bytes(forms: Sequence[TensorForm], num_kinds: int = NUM_KINDS) -> int:
    """Length of the model of tensors with these forms, made with ``num_kinds`` kinds."""
    return sum(plane.num_levels for plane in _planes(forms)) + _tables_bytes(num_kinds)


def decode_tensors(
    forms: Sequence[TensorForm], model: bytes, values: bytes, num_kinds: int = NUM_KINDS
) -> list[StoredTensor]:
    """The tensors that `encode_tensors` turned into `model` and `values`.

    Args:
        forms: how each tensor is stored, using only the first ``num_kinds`` kinds.
        model: the model, of `model_bytes` bytes.
        values: the coded values.
        num_kinds: how many kinds there were when the model was made.

    Raises:
        rans.CorruptStreamError: `values` are not what such tensors are coded as.
    """
    assert len(model) == model_bytes(forms, num_kinds)
    planes = _planes(forms)
    assert all(plane.kind < num_kinds for plane in planes)
    levels_bytes = len(model) - _tables_bytes(num_kinds)
    levels = np.split(np.frombuffer(model, np.int8, levels_bytes), np.cumsum([plane.num_levels for plane in planes]))
    table_of = [_tables_of(plane, plane_levels) for plane, plane_levels in zip(planes, levels, strict=False)]
    low, high = np.frombuffer(model, np.uint8, offset=levels_bytes).reshape(2, num_kinds * _LEVELS, 256)
    frequencies = low.astype(np.uint16) | (high.astype(np.uint16) << np.uint16(8))
    symbols = rans.decode(values, frequencies, _joined(table_of, np.uint16))
    parts: list[dict[_Kind, NDArray[np.uint8]]] = [{} for _ in forms]
    for plane, part in zip(planes, np.split(symbols, np.cumsum([plane.num_values for plane in planes])), strict=False):
        parts[plane.tensor][plane.kind] = part
    return [_assemble(form, part) for form, part in zip(forms, parts, strict=True)]


def coded_sizes(tensors: Sequence[StoredTensor]) -> list[float]:
    """How many bytes each tensor's values take in the shared coded stream."""
    fit = _fit(tensors)
    bits = np.where(fit.counts > 0, rans.PRECISION - np.log2(np.maximum(fit.frequencies, 1)), 0.0)
    sizes = [0.0] * len(tensors)
    ends = np.cumsum([plane.num_values for plane in fit.planes])
    for plane, end in zip(fit.planes, ends, strict=True):
        span = slice(end - plane.num_values, end)
        sizes[plane.tensor] += float(bits[fit.table_of[span], fit.symbols[span]].sum()) / 8
    return sizes


def _fit(tensors: Sequence[StoredTensor]) -> _Fit:
    forms = [TensorForm(tensor.storage, tuple(tensor.values.shape)) for tensor in tensors]
    cuts = {(index, kind): values for index, tensor in enumerate(tensors) for kind, values in _cut(tensor)}
    planes = _planes(forms)
    symbols = [cuts[plane.tensor, plane.kind] for plane in planes]
    levels = [_levels(plane, values) for plane, values in zip(planes, symbols, strict=True)]
    table_of = [_tables_of(plane, plane_levels) for plane, plane_levels in zip(planes, levels, strict=True)]
    num_tables = NUM_KINDS * _LEVELS
    flat_counts = np.zeros(num_tables * 256, np.int64)
    for tables, values in zip(table_of, symbols, strict=True):
        flat_counts += np.bincount((tables.astype(np.intp) << 8) | values, minlength=flat_counts.size)
    counts = flat_counts.reshape(num_tables, 256)
    frequencies = np.stack([rans.frequency_table(counts[table]) for table in range(num_tables)])
    return _Fit(planes, levels, _joined(symbols, np.uint8), _joined(table_of, np.uint16), counts, frequencies)


def _tables_bytes(num_kinds: int) -> int:
    return 2 * 256 * num_kinds * _LEVELS


def _planes(forms: Sequence[TensorForm]) -> list[_PlaneForm]:
    """All planes of tensors with these forms, in coded order."""
    planes = []
    for index, form in enumerate(forms):
        rows, cols = _as_matrix(form.shape)
        if form.storage in _CODES:
            planes.append(_PlaneForm(index, _CODES[form.storage], rows, cols))
            rows, cols = 1, rows  # the scales
        planes += [_PlaneForm(index, kind, rows, cols) for kind in (_Kind.HIGH, _Kind.LOW)]
    return sorted(planes, key=lambda plane: plane.kind)


def _as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _cut(tensor: StoredTensor) -> list[tuple[_Kind, NDArray[np.uint8]]]:
    """The values of a tensor's planes, each flat."""
    planes = []
    floats = tensor.values
    if tensor.scales is not None:
        codes = tensor.values.contiguous().view(torch.uint8).numpy()
        planes.append((_CODES[tensor.storage], codes.ravel()))
        floats = tensor.scales
    halves = floats.contiguous().numpy().astype("<f2").reshape(-1, 1).view(np.uint8)
    return [*planes, (_Kind.HIGH, halves[:, 1]), (_Kind.LOW, halves[:, 0])]


def _assemble(form: TensorForm, planes: Mapping[_Kind, NDArray[np.uint8]]) -> StoredTensor:
    """The tensor that `_cut` cut into these planes."""
    floats = torch.from_numpy(
        np.stack([planes[_Kind.LOW], planes[_Kind.HIGH]], axis=1).view("<f2").astype(np.float16).ravel()
    )
    if form.storage in _CODES:
        codes = planes[_CODES[form.storage]].view(np.int8).reshape(form.shape)
        return StoredTensor(form.storage, torch.from_numpy(codes), floats)
    return StoredTensor(form.storage, floats.reshape(form.shape))


def _levels(plane: _PlaneForm, values: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Levels of a plane's rows, then of its columns."""
    if plane.num_levels == 0 or plane.num_values == 0:
        return np.zeros(plane.num_levels, np.int8)
    magnitudes = _MAGNITUDES[plane.kind].take(values).reshape(plane.rows, plane.cols)
    if plane.cols >= _LEAST_LINE:
        row_levels = _rounded(magnitudes.sum(axis=1, dtype=np.int64), plane.cols * _LEVEL)
    else:
        row_levels = np.full(plane.rows, _rounded(magnitudes.sum(dtype=np.int64), plane.num_values * _LEVEL))
    col_levels = np.zeros(plane.cols, np.int64)
    if plane.rows >= _LEAST_LINE:
        left = magnitudes.sum(axis=0, dtype=np.int64) - row_levels.sum() * _LEVEL
        col_levels = _rounded(left, plane.rows * _LEVEL)
    return np.concatenate([row_levels, col_levels]).astype(np.int8)


def _tables_of(plane: _PlaneForm, levels: NDArray[np.int8]) -> NDArray[np.uint16]:
    """The table that codes each value of a plane, flat."""
    first = plane.kind * _LEVELS
    if plane.num_levels == 0:
        return np.full(plane.num_values, first, np.uint16)
    row_levels, col_levels = np.split(levels.astype(np.int16), [plane.rows])
    return (first + (row_levels[:, None] + col_levels).clip(0, _LEVELS - 1)).astype(np.uint16).ravel()


def _rounded(numerator: NDArray[np.int64], denominator: int) -> NDArray[np.int64]:
    """The quotients, rounded to integers."""
    return (2 * numerator + denominator) // (2 * denominator)


def _joined(parts: Sequence[NDArray], dtype: type) -> NDArray:
    return np.concatenate([np.zeros(0, dtype), *parts])


def _magnitudes() -> dict[_Kind, NDArray[np.uint16]]:
    """For each byte of a plane, a number that grows by `_LEVEL` with every quarter octave of its magnitude.

    A positive float16, read as an integer, is such a number: it grows by 1024 per octave.
    """
    codes = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int64)
    of_code = (2 * np.abs(codes) + 1).astype(np.float16).view(np.uint16)
    of_high = ((np.arange(256) & 0x7F) * _LEVEL + _LEVEL // 2).astype(np.uint16)
    return {kind: of_high if kind is _Kind.HIGH else of_code for kind in _Kind if kind is not _Kind.LOW}


_LEVEL = 256
_MAGNITUDES = _magnitudes()
