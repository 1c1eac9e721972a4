"""What loggers get of a run as it trains: loss, tokens per second and every reporter's metrics."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.clock import Clock
from callbacks.common import data_of, ends_step, find, log_metrics, mean_over_ranks, reporters


class Monitor(Callback):
    """Log every ``trainer.log_every_n_steps`` optimizer steps; only then does the host wait for the device.

    ``loss`` is the last logged training loss: the mean over a step's micro-batches and all ranks, in nats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss: float | None = None
        self._step_loss: Tensor | None = None
        self._last = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the current step."""
        self._last = (trainer.global_step, find(trainer, Clock).elapsed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Accumulate a step's loss on the device, and log it if that is due."""
        micro_loss = outputs["loss"]  # already divided by the number of micro-batches
        self._step_loss = micro_loss if self._step_loss is None else self._step_loss + micro_loss
        if not ends_step(trainer, batch_idx):
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, self._step_loss)
        self._step_loss = None

    def _log(self, trainer: Trainer, step_loss: Tensor) -> None:
        self.loss = float(mean_over_ranks(step_loss))
        elapsed = find(trainer, Clock).elapsed
        last_step, last_elapsed = self._last
        self._last = (trainer.global_step, elapsed)
        metrics = {"loss/train": self.loss, "speed/epoch_of_data": data_of(trainer).epoch}
        if elapsed > last_elapsed:
            tokens = (trainer.global_step - last_step) * data_of(trainer).train_batch_tokens
            metrics["speed/tokens_per_second"] = tokens / (elapsed - last_elapsed)
        for reporter in reporters(trainer):
            metrics |= reporter.metrics(trainer)
        log_metrics(trainer, metrics)
