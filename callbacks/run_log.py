"""train.log: the run as plain text, one line per event, to read and to submit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from callbacks.clock import Clock
from callbacks.common import Event, ends_step, find
from callbacks.line_file import LineFile
from callbacks.monitor import Monitor
from callbacks.scoring import ValidationScore
from components.run_files import LOG_NAME


class RunLog(Callback):
    """Write a fit's events to ``train.log`` in its log folder, on rank 0, as they happen.

    It must be called after the callbacks that it reads: the clock, the monitor and the validation score.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file: LineFile | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the log."""
        log_dir = trainer.log_dir  # a broadcast from rank 0, so every rank must take part
        if trainer.is_global_zero:
            assert log_dir is not None
            self._file = LineFile(Path(log_dir) / LOG_NAME)
        num_params, device = sum(p.numel() for p in pl_module.parameters()), trainer.strategy.root_device.type
        self._write(f"{num_params} parameters, {trainer.world_size} ranks on {device}")
        rank_zero_info(f"Run: {log_dir}, {num_params:,} parameters, ranks: {trainer.world_size} ({device})")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where the run starts."""
        self._write(f"start at step {trainer.global_step}, elapsed {find(trainer, Clock).elapsed:.3f} s")

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Write the event's sentence."""
        self._write(event.sentence)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a step that the monitor logged."""
        step = trainer.global_step
        if ends_step(trainer, batch_idx) and step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            elapsed, loss = find(trainer, Clock).elapsed, find(trainer, Monitor).loss
            self._write(
                f"step {step} train_loss {loss:.4f} elapsed {elapsed:.3f} s step_avg {1000 * elapsed / step:.2f} ms"
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a validation's score."""
        score = find(trainer, ValidationScore).score
        if trainer.state.fn == TrainerFn.FITTING and score is not None:
            self._write(
                f"validation step {trainer.global_step} val_loss {score.loss:.6f} val_bpb {score.bits_per_byte:.6f}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where the run stopped."""
        self._write(f"stopped at step {trainer.global_step}, elapsed {find(trainer, Clock).elapsed:.3f} s")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line)
