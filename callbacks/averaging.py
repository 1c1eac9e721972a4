"""Snapshot averaging (SWA): the mean of the weights at regular steps of the warm-down is the final model."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.common import ends_step, find, network_of
from callbacks.late_qat import LateQAT
from callbacks.schedule import Schedule
from components.errors import UserError


class SnapshotAveraging(Callback):
    """Sum snapshots of the parameters on their own device in float32, and leave their mean when training ends.

    Args:
        start_multiplier: Snapshots are taken while the learning-rate multiplier is under this; 0 for none.
        every_n_steps: Optimizer steps from one snapshot to the next.
        only_under_qat: Whether to take snapshots only once late QAT has begun: those from before lie on another grid.
    """

    def __init__(self, start_multiplier: float = 0.5, every_n_steps: int = 50, only_under_qat: bool = False) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise UserError(f"averaging.every_n_steps is {every_n_steps}; set it to at least 1.")
        if not 0 <= start_multiplier <= 1:
            raise UserError(
                f"averaging.start_multiplier is {start_multiplier}; set a learning-rate multiplier from 0 (none) to 1."
            )
        self.start_multiplier = start_multiplier
        self.every_n_steps = every_n_steps
        self.only_under_qat = only_under_qat
        self.num_snapshots = 0
        self.last_snapshot_step: int | None = None  # of this process, for who marks the moment
        self._sums: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring a resumed run's sums to where its parameters are."""
        self._sums = {name: total.to(pl_module.device) for name, total in self._sums.items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a snapshot where one is due."""
        if not ends_step(trainer, batch_idx) or trainer.global_step % self.every_n_steps:
            return
        if self.only_under_qat and not find(trainer, LateQAT).active:
            return
        if find(trainer, Schedule).multiplier < self.start_multiplier:
            self._add(dict(network_of(pl_module).named_parameters()))
            self.last_snapshot_step = trainer.global_step

    @torch.no_grad()
    def _add(self, parameters: dict[str, Tensor]) -> None:
        if not self._sums:
            self._sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        torch._foreach_add_([self._sums[name] for name in parameters], [p.float() for p in parameters.values()])
        self.num_snapshots += 1

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the mean into the network."""
        if self.num_snapshots:
            for name, p in network_of(pl_module).named_parameters():
                p.copy_(self._sums[name] / self.num_snapshots)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"num_snapshots": self.num_snapshots, "sums": self._sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self.num_snapshots, self._sums = state_dict["num_snapshots"], state_dict["sums"]

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """What the run summary says of averaging."""
        return {"snapshots_averaged": self.num_snapshots}

    def missed(self, trainer: Trainer) -> list[str]:
        """Phases that this run was too short for."""
        if self.start_multiplier and not self.num_snapshots:
            under_qat = " under QAT" if self.only_under_qat else ""
            return [
                f"no snapshot was averaged: no step that {self.every_n_steps} divides came{under_qat} with the "
                f"learning-rate multiplier under {self.start_multiplier}"
            ]
        return []
