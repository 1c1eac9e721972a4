"""What TensorBoard shows of a run: loss, rates, momentum, time, tokens a second, and when its phases began."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from callbacks.averaging import SnapshotAveraging
from callbacks.clock import Clock
from callbacks.common import data_of, ends_step, find
from callbacks.late_qat import LateQAT


class Monitor(Callback):
    """Log every ``trainer.log_every_n_steps`` optimizer steps; only then does the host wait for the device.

    ``loss`` is the last logged training loss: the mean of a step's micro-batches over all ranks, in nats.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss: float | None = None
        self._step_loss: Tensor | None = None
        self._last = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from where the run stands."""
        self._last = (trainer.global_step, find(trainer, Clock).elapsed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Gather a step's loss on the device, and log where it is time."""
        micro_loss = outputs["loss"]  # over the number of micro-batches already
        self._step_loss = micro_loss if self._step_loss is None else self._step_loss + micro_loss
        if not ends_step(trainer, batch_idx):
            return
        self._mark_phases(trainer)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, self._step_loss)
        self._step_loss = None

    def _log(self, trainer: Trainer, step_loss: Tensor) -> None:
        self.loss = float(trainer.strategy.reduce(step_loss, reduce_op="mean"))
        clock = find(trainer, Clock)
        last_step, last_elapsed = self._last
        self._last = (trainer.global_step, clock.elapsed)
        tokens = (trainer.global_step - last_step) * data_of(trainer).train_batch_tokens
        metrics = {"train_loss": self.loss, "elapsed_seconds": clock.elapsed}
        if clock.elapsed > last_elapsed:
            metrics["tokens_per_second"] = tokens / (clock.elapsed - last_elapsed)
        metrics["epoch_of_data"] = data_of(trainer).train_dataloader().epoch
        for group in trainer.optimizers[0].param_groups:
            metrics[f"lr/{group['name']}"] = group["lr"]
            if "momentum" in group:
                metrics["momentum"] = group["momentum"]
        metrics["phase/late_qat"] = float(find(trainer, LateQAT).active)
        metrics["phase/snapshots"] = float(find(trainer, SnapshotAveraging).num_snapshots)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _mark_phases(self, trainer: Trainer) -> None:
        late_qat, averaging = find(trainer, LateQAT), find(trainer, SnapshotAveraging)
        if late_qat.start_step == trainer.global_step - 1:
            _mark(
                trainer,
                "late QAT",
                f"fake quantization from step {late_qat.start_step}, {late_qat.start_seconds:.1f} s",
            )
        if averaging.last_snapshot_step == trainer.global_step:
            _mark(trainer, "snapshot", f"snapshot {averaging.num_snapshots} at step {trainer.global_step}")


def _mark(trainer: Trainer, tag: str, text: str) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, trainer.global_step)
