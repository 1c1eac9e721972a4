"""Muon: momentum orthogonalized by Newton-Schulz, batched by shape and split over the ranks.

Method and default coefficients: Keller Jordan, https://kellerjordan.github.io/posts/muon/. Other coefficients:
Amsel et al., Polar Express, arXiv 2505.16932.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

Coefficients = tuple[float, float, float]
"""a, b and c of one iteration, which maps a singular value s to ``a s + b s^3 + c s^5``."""

NEWTON_SCHULZ: Coefficients = (3.4445, -4.7750, 2.0315)
"""The same in every iteration; 5 of them bring singular values into about [0.7, 1.2]."""

POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""One for each of 5 iterations, each optimal after the one before (safety factor 0.02, cushion 2)."""


def orthogonalize(matrices_NRC: Tensor, coefficients: Sequence[Coefficients]) -> Tensor:
    """Move every matrix's singular values toward 1 by a quintic Newton-Schulz iteration in bfloat16.

    Args:
        matrices_NRC: N matrices of R rows and C >= R columns, any float dtype.
        coefficients: One triple per iteration.

    Returns:
        bfloat16 [N, R, C].
    """
    assert matrices_NRC.size(-2) <= matrices_NRC.size(-1), "the small Gram matrix is the cheap one: transpose first"
    x = matrices_NRC.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # Without bfloat16 instructions, a CPU takes 100 times as long for a bfloat16 product as for a float32 one. The
    # result is the same: bfloat16 numbers multiply exactly in float32, and either way the sum is rounded once.
    working = torch.float32 if x.device.type == "cpu" else torch.bfloat16
    x = x.to(working)
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT).bfloat16().to(working)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c).bfloat16().to(working)
        x = torch.baddbmm(x, gram, x, beta=a).bfloat16().to(working)
    return x.bfloat16()


def orthogonalize_all(
    matrices: list[Tensor], coefficients: Sequence[Coefficients], row_normalize: bool = False
) -> list[Tensor]:
    """Orthogonalize matrices of any shapes, the same on every rank, each rank doing its share.

    Matrices of one shape and its transpose go through one batched iteration. If a process group is initialized, each
    rank computes an equal slice of every batch, and one all-gather shares the results.

    Args:
        matrices: The matrices.
        coefficients: One triple per iteration.
        row_normalize: Whether each row of each matrix is first scaled to unit length.

    Returns:
        Contiguous matrices of the given dtype, in the order given.
    """
    buckets: dict[tuple[int, int], list[int]] = {}
    for i in sorted(range(len(matrices)), key=lambda i: _is_tall(matrices[i])):  # the wide ones of a bucket first
        rows, cols = matrices[i].shape
        buckets.setdefault((min(rows, cols), max(rows, cols)), []).append(i)
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)

    def my_share(indices: list[int]) -> Tensor:
        # All ranks' slices have one size, so one all-gather suffices; the last ones are padded with repeats.
        size = -(-len(indices) // world_size)
        share = [matrices[indices[min(rank * size + j, len(indices) - 1)]] for j in range(size)]
        batch = torch.stack([matrix.mT if _is_tall(matrix) else matrix for matrix in share])
        if not row_normalize:
            return batch
        parts = batch.split(_wide_and_tall(share))
        return torch.cat([F.normalize(part, dim=dim, eps=1e-7) for part, dim in zip(parts, (-1, -2), strict=True)])

    mine = [orthogonalize(my_share(indices), coefficients) for indices in buckets.values()]
    parts = _gather([part.flatten() for part in mine], world_size)
    results = list(matrices)
    for (shape, indices), ranks_parts in zip(buckets.items(), parts, strict=True):
        batch = ranks_parts.view(-1, *shape)[: len(indices)]
        wide, tall = batch.split(_wide_and_tall([matrices[i] for i in indices]))
        # Converted as batches and contiguous: each update by itself would be a kernel, and one of other strides than
        # its weight makes `torch._foreach_add_` update the weights one by one.
        kind = {"dtype": matrices[0].dtype, "memory_format": torch.contiguous_format}
        for i, result in zip(indices, (*wide.to(**kind), *tall.mT.to(**kind)), strict=True):
            results[i] = result
    return results


def _is_tall(matrix: Tensor) -> bool:
    return matrix.size(0) > matrix.size(1)


def _wide_and_tall(matrices: list[Tensor]) -> list[int]:
    """How many are not tall, and how many are."""
    num_tall = sum(map(_is_tall, matrices))
    return [len(matrices) - num_tall, num_tall]


def _gather(parts: list[Tensor], world_size: int) -> list[Tensor]:
    """Concatenate each flat part over the ranks, in one collective for all of them."""
    if world_size == 1:
        return parts
    flat = torch.cat(parts)
    gathered = flat.new_empty(world_size, flat.numel())
    # As bytes: some backends lack bfloat16.
    dist.all_gather_into_tensor(gathered.view(-1).view(torch.uint8), flat.view(torch.uint8))
    return [part.flatten() for part in gathered.split([p.numel() for p in parts], dim=1)]


class Muon(Optimizer):
    """Nesterov momentum, orthogonalized, scaled by sqrt(max(1, rows / cols)), with decoupled weight decay.

    The momentum buffer is ``buf = momentum * buf + grad`` and the direction ``grad + momentum * buf``. Gradients must
    be the same on every rank (as after DistributedDataParallel). So is the state: any rank's checkpoint is complete.

    Args:
        params: Matrices, or groups of them.
        lr: Step size, in units of the orthogonalized update.
        weight_decay: Share of the weight removed each step, times lr.
        momentum: Share of the buffer kept each step.
        coefficients: One triple per iteration of the orthogonalization.
        row_normalize: Whether each row of the direction, an output channel, is scaled to unit length before
            orthogonalization.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        coefficients: Sequence[Coefficients] = (NEWTON_SCHULZ,) * 5,
        row_normalize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "coefficients": tuple(coefficients),
            "row_normalize": row_normalize,
        }
        super().__init__(params, defaults)
        assert all(p.ndim == 2 for group in self.param_groups for p in group["params"]), "Muon is for matrices"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        directions = torch._foreach_add(grads, buffers, alpha=group["momentum"])
        updates = orthogonalize_all(list(directions), group["coefficients"], group["row_normalize"])
        scales = [-group["lr"] * max(1.0, p.size(0) / p.size(1)) ** 0.5 for p in params]
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(params, updates)
