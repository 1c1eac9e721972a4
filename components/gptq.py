"""GPTQ: rounding that compensates for each column's error in later columns, weighted by the products' inputs.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", https://arxiv.org/abs/2210.17323. A row w rounded to q costs ``(w - q) H (w - q)^T``, where H is the
Hessian from `components.calibration`. With U the upper Cholesky factor of H's inverse, the rest of a row best
compensates for the error of column j by ``w_k -= e U_jk`` with ``e = (w_j - q_j) / U_jj``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from components.calibration import collect_hessians
from components.errors import UserError
from components.gpt import GPT
from components.quantization import (
    LARGEST_CODE,
    SMALLEST_SCALE,
    Nearest,
    Quantizer,
    StoredTensor,
    check_row_max_floor,
    round_to_float16,
    row_max_scales,
)
from components.storage import Storage

BLOCK = 128
"""Columns whose errors are applied to all later blocks in one product."""

DAMPING = 0.01
"""Share of a Hessian's mean diagonal that is added to its diagonal, to make it invertible."""

TABLES = ("tok_emb.weight", "lm_head.weight")
"""The names that an output head's weight may have."""


class GPTQ(Quantizer):
    """Round the weights of products so that their outputs on training data change least.

    A row's scale is fixed in advance, from its standard deviation or its maximum; codes are symmetric. Weights that no
    product uses, such as a hash table, are rounded to nearest, as by `Nearest`.

    Args:
        calibration_batches: Micro-batches of training data for calibration, over all ranks.
        matrix_sigmas: Standard deviations of a row that the largest code of a layer's matrix represents; 0 to use the
            row's maximum instead.
        table_sigmas: The same for the output head, which is the token table if they are tied.
        row_max_floor: Least value of a row's maximum, if that sets the scale; 0 for none.
        calibrate_table: Whether the output head is calibrated; if not, it is rounded to nearest.
    """

    def __init__(
        self,
        calibration_batches: int = 64,
        matrix_sigmas: float = 12.85,
        table_sigmas: float = 20.0,
        row_max_floor: float = 0.0,
        calibrate_table: bool = True,
    ) -> None:
        if calibration_batches < 1:
            raise UserError(
                f"export.quantizer.calibration_batches is {calibration_batches}, and GPTQ cannot round without "
                "calibration; set it to at least 1, or export.quantizer to Nearest."
            )
        for name, sigmas in (("matrix_sigmas", matrix_sigmas), ("table_sigmas", table_sigmas)):
            if not 0 <= sigmas < math.inf:
                raise UserError(
                    f"export.quantizer.{name} is {sigmas}; set how many standard deviations of a row the largest "
                    "code stands for, or 0 to scale rows by their maximum."
                )
        check_row_max_floor(row_max_floor)
        self.calibration_batches = calibration_batches
        self.matrix_sigmas = matrix_sigmas
        self.table_sigmas = table_sigmas
        self.row_max_floor = row_max_floor
        self.calibrate_table = calibrate_table
        self.hessians: dict[str, Tensor] = {}

    def calibrate(self, network: GPT, batches: Iterable[Tensor]) -> None:
        """Collect the Hessians of the network's products."""
        self.hessians = collect_hessians(network, batches)

    def share_calibration(self, other: Quantizer) -> bool:
        """Take the Hessians of a GPTQ that saw as many batches."""
        if not isinstance(other, GPTQ) or other.calibration_batches != self.calibration_batches:
            return False
        self.hessians = other.hessians
        return True

    @torch.no_grad()
    def quantize_all(self, matrices: Mapping[str, Tensor], storages: Mapping[str, Storage]) -> dict[str, StoredTensor]:
        """Round calibrated matrices in batches of one shape, split over the ranks; round the rest to nearest.

        Raises:
            UserError: Inputs of a product were not finite.
        """
        assert self.hessians, "it must be calibrated first"
        calibrated = [
            name for name in matrices if name in self.hessians and (self.calibrate_table or name not in TABLES)
        ]
        for name in calibrated:
            if not self.hessians[name].isfinite().all():
                raise UserError(
                    f"What the network multiplied {name} by was not finite on training data, so it cannot be "
                    "calibrated; train again with a lower learning rate or from an earlier checkpoint."
                )
        rest = {name: matrix for name, matrix in matrices.items() if name not in calibrated}
        stored = Nearest(self.row_max_floor).quantize_all(rest, storages)
        codes, scales = self._round({name: matrices[name].float() for name in calibrated}, storages)
        for name in calibrated:
            stored[name] = StoredTensor(storages[name], codes[name].cpu(), scales[name].half().cpu())
        return stored

    def fake_quantize(self, weight: Tensor, storage: Storage) -> Tensor:
        """Not supported: codes depend on the calibration, not just on the weight."""
        raise AssertionError("late QAT must refuse a quantizer that is calibrated")

    def _round(
        self, matrices: Mapping[str, Tensor], storages: Mapping[str, Storage]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """int8 codes and float32 scales of calibrated matrices, each computed on one rank and then sent to all."""
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        groups: dict[tuple[torch.Size, Storage], list[str]] = {}
        for name, matrix in matrices.items():
            groups.setdefault((matrix.shape, storages[name]), []).append(name)
        codes = {name: torch.zeros_like(matrix, dtype=torch.int8) for name, matrix in matrices.items()}
        scales = {name: torch.zeros(matrix.size(0), device=matrix.device) for name, matrix in matrices.items()}
        for (_, storage), names in groups.items():
            mine = names[rank::world_size]
            if not mine:
                continue
            scales.update({name: self._scales(name, matrices[name], storage) for name in mine})
            weights, hessians, steps = (
                torch.stack([of[name] for name in mine]) for of in (matrices, self.hessians, scales)
            )
            codes.update(zip(mine, compensated_codes(weights, hessians, steps, LARGEST_CODE[storage]), strict=True))
        if world_size > 1:
            for share in (*codes.values(), *scales.values()):
                dist.all_reduce(share)  # the other ranks have zeros
        return codes, scales

    def _scales(self, name: str, matrix: Tensor, storage: Storage) -> Tensor:
        sigmas = self.table_sigmas if name in TABLES else self.matrix_sigmas
        if sigmas:
            return sigma_scales(matrix, storage, sigmas)
        return row_max_scales(matrix, storage, self.row_max_floor)


def sigma_scales(weight: Tensor, storage: Storage, sigmas: float) -> Tensor:
    """Scales from each row's standard deviation: float32 [rows] that float16 holds exactly.

    ``float16(sigmas * std(row) / c)``, with Bessel's correction; at least float16's smallest normal.
    """
    scales = sigmas * weight.float().std(dim=1) / LARGEST_CODE[storage]
    return round_to_float16(scales.clamp_min(SMALLEST_SCALE))


def compensated_codes(weights_GRC: Tensor, hessians_GCC: Tensor, scales_GR: Tensor, largest: int) -> Tensor:
    """int8 codes [G, R, C] in ±largest of G matrices of one shape, largest Hessian diagonals first.

    A column whose input was always zero has a zero diagonal and gets codes of zero.

    Args:
        weights_GRC: float32, the matrices.
        hessians_GCC: One per matrix, any float dtype.
        scales_GR: float32, one per row.
        largest: The largest code.
    """
    hessians_GCC = hessians_GCC.to(torch.float64, copy=True)
    diagonals_GC = hessians_GCC.diagonal(dim1=1, dim2=2)  # a view, used to modify the copy
    dead_GC = diagonals_GC == 0
    diagonals_GC += dead_GC
    order_GC = diagonals_GC.argsort(dim=1, descending=True, stable=True)
    diagonals_GC += DAMPING * diagonals_GC.mean(dim=1, keepdim=True)
    factors_GCC = _inverse_factors(hessians_GCC, order_GC).float()
    # Columns come first, so that each is contiguous.
    columns_GCR = weights_GRC.masked_fill(dead_GC[:, None], 0).mT
    sorted_GCR = columns_GCR.gather(1, order_GC[:, :, None].expand_as(columns_GCR))
    codes_GCR = _round_in_order(sorted_GCR, factors_GCC, scales_GR, largest)
    unsorted_GCR = torch.empty_like(codes_GCR).scatter_(1, order_GC[:, :, None].expand_as(codes_GCR), codes_GCR)
    return unsorted_GCR.mT.contiguous()


def _inverse_factors(hessians_GCC: Tensor, order_GC: Tensor) -> Tensor:
    """Upper triangular U of each Hessian in the given column order; ``U^T U`` is its inverse.

    With J the reversal of rows or columns and ``J H J = L L^T`` the Cholesky factorization, ``H = (J L J) (J L J)^T``.
    J L J is upper triangular, and U is its inverse. H itself need not be inverted.
    """
    reverse_GC = order_GC.flip(1)
    rows_GCC = hessians_GCC.gather(1, reverse_GC[:, :, None].expand_as(hessians_GCC))
    lower_GCC = torch.linalg.cholesky(rows_GCC.gather(2, reverse_GC[:, None, :].expand_as(rows_GCC)))
    identity = torch.eye(lower_GCC.size(1), dtype=lower_GCC.dtype, device=lower_GCC.device)
    return torch.linalg.solve_triangular(lower_GCC.flip(1, 2), identity.expand_as(lower_GCC), upper=True)


def _round_in_order(columns_GCR: Tensor, factors_GCC: Tensor, scales_GR: Tensor, largest: int) -> Tensor:
    """Codes [G, C, R] of columns rounded one after another; overwrites the columns."""
    num_columns = columns_GCR.size(1)
    codes_GCR = torch.empty_like(columns_GCR, dtype=torch.int8)
    for start in range(0, num_columns, BLOCK):
        block, rest = slice(start, min(start + BLOCK, num_columns)), slice(start + BLOCK, None)
        errors_GBR = torch.empty_like(columns_GCR[:, block])
        for i, column in enumerate(range(block.start, block.stop)):
            factors_GB1 = factors_GCC[:, start:column, column, None]
            weight_GR = columns_GCR[:, column] - (factors_GB1.mT @ errors_GBR[:, :i]).squeeze(1)
            code_GR = (weight_GR / scales_GR).round().clamp(-largest, largest)
            codes_GCR[:, column] = code_GR
            errors_GBR[:, i] = (weight_GR - code_GR * scales_GR) / factors_GCC[:, column, column, None]
        columns_GCR[:, rest] -= factors_GCC[:, block, rest].mT @ errors_GBR
    return codes_GCR
