"""train.log: the run as plain text, a line an event, to be read and to be handed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.averaging import SnapshotAveraging
from callbacks.clock import Clock
from callbacks.common import ends_step, find
from callbacks.export import Export
from callbacks.late_qat import LateQAT
from callbacks.monitor import Monitor
from callbacks.scoring import SlidingWindowScore


class RunLog(Callback):
    """Write a fit's events to ``train.log`` in its log folder, on rank 0, as they happen.

    Must come after the callbacks that it asks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._file: TextIO | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the log."""
        log_dir = trainer.log_dir  # asks rank 0, so every rank must
        if trainer.is_global_zero:
            assert log_dir is not None
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            self._file = (Path(log_dir) / "train.log").open("w", buffering=1)
        num_params = sum(p.numel() for p in pl_module.parameters())
        self._say(f"{num_params} parameters, {trainer.world_size} ranks on {trainer.strategy.root_device.type}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the run starts from."""
        self._say(f"start at step {trainer.global_step}, elapsed {find(trainer, Clock).elapsed:.3f} s")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a step that the monitor logged, and the phases as they begin."""
        if not ends_step(trainer, batch_idx):
            return
        step, late_qat, averaging = trainer.global_step, find(trainer, LateQAT), find(trainer, SnapshotAveraging)
        if late_qat.start_step == step - 1:
            self._say(f"late QAT from step {late_qat.start_step}, {late_qat.start_seconds:.3f} s")
        if averaging.last_snapshot_step == step:
            self._say(f"snapshot {averaging.num_snapshots} at step {step}")
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            elapsed, loss = find(trainer, Clock).elapsed, find(trainer, Monitor).loss
            self._say(
                f"step {step} train_loss {loss:.4f} elapsed {elapsed:.3f} s step_avg {1000 * elapsed / step:.2f} ms"
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a validation's score."""
        score = find(trainer, SlidingWindowScore).score
        if trainer.state.fn == TrainerFn.FITTING and score is not None:
            self._say(
                f"validation step {trainer.global_step} val_loss {score.loss:.6f} val_bpb {score.bits_per_byte:.6f}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write where the run stopped."""
        self._say(f"stopped at step {trainer.global_step}, elapsed {find(trainer, Clock).elapsed:.3f} s")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was exported and what it scores."""
        facts = find(trainer, Export).summary(trainer)
        self._say(
            f"exported {facts['bytes_model']} bytes, with code {facts['bytes_code']} bytes {facts['bytes_total']} bytes"
        )
        self._say(f"float weights val_loss {facts['pre_quant_val_loss']:.8f} val_bpb {facts['pre_quant_val_bpb']:.8f}")
        self._say(
            f"artifact val_loss {facts['val_loss']:.8f} val_bpb {facts['val_bpb']:.8f} "
            f"scored in {facts['eval_time_seconds']:.3f} s"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _say(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line + "\n")
