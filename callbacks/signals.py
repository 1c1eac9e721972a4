"""How a run learns that it is told to terminate, without a wait for the device at every micro-batch."""

from __future__ import annotations

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Stage


class Signals(Callback):
    """Keep ranks from asking each other before every micro-batch whether one of them was told to terminate.

    Lightning has every rank ask rank 0, and waits for the device to hear the answer
    (https://github.com/Lightning-AI/pytorch-lightning/issues/21487). A rank that is told still ends by itself.
    """

    stage = Stage.WARMUP

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the question out of the training loop."""
        if stage == TrainerFn.FITTING and dist.is_initialized():
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
