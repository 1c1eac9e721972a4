"""What storing the weights costs, for the loggers: bytes of the artifact, and error against the float weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.common import find, log_metrics, network_of
from callbacks.export import Export
from components.quantization import StoredTensor
from components.weight_coding import coded_sizes


@dataclass(frozen=True)
class TensorCost:
    """What storing a tensor costs.

    Attributes:
        num_bytes: its share of the file.
        relative_error: norm of the difference from the float weights, over their norm.
        norm: norm of the float weights.
    """

    num_bytes: float
    relative_error: float
    norm: float


class StorageCosts(Callback):
    """Log bytes and relative error of all tensors of one storage together, once a fit has exported them.

    It must be called after the export.

    Attributes:
        costs: What storing each tensor costs, on rank 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.costs: Mapping[str, TensorCost] = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the costs, and log them."""
        if trainer.is_global_zero:
            stored = find(trainer, Export).stored
            self.costs = _costs(stored, dict(network_of(pl_module).named_parameters()))
            log_metrics(trainer, _costs_by_storage(stored, self.costs))


def _costs(stored: Mapping[str, StoredTensor], floats: Mapping[str, Tensor]) -> dict[str, TensorCost]:
    sizes = coded_sizes(list(stored.values()))
    return {
        name: TensorCost(size, tensor.relative_error(floats[name]), float(floats[name].detach().norm()))
        for (name, tensor), size in zip(stored.items(), sizes, strict=True)
    }


def _costs_by_storage(stored: Mapping[str, StoredTensor], costs: Mapping[str, TensorCost]) -> dict[str, float]:
    """Bytes and relative error of all tensors of one storage together, as metrics."""
    metrics = {}
    for storage in sorted({tensor.storage for tensor in stored.values()}):
        of_kind = [costs[name] for name, tensor in stored.items() if tensor.storage is storage]
        norm = math.hypot(*(cost.norm for cost in of_kind))
        error = math.hypot(*(cost.relative_error * cost.norm for cost in of_kind))
        metrics[f"quantization/error_{storage}"] = error / norm if norm else 0.0
        metrics[f"quantization/bytes_{storage}"] = sum(cost.num_bytes for cost in of_kind)
    return metrics
