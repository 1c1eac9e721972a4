"""Termination signals, without waiting for the device at every micro-batch."""

from __future__ import annotations

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Stage


class Signals(Callback):
    """Keep ranks from checking before every micro-batch whether one of them received a SIGTERM.

    Lightning broadcasts the answer from rank 0 and waits for the device to receive it
    (https://github.com/Lightning-AI/pytorch-lightning/issues/21487). A rank that receives the signal still exits.
    """

    stage = Stage.WARMUP

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the broadcast from the training loop."""
        if stage == TrainerFn.FITTING and dist.is_initialized():
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
