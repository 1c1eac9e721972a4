"""Checkpoints while a run trains, by time, and what it takes to go on from them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from callbacks.clock import Clock
from callbacks.common import Reporter, Stage, ends_step, find
from callbacks.run_folder import CHECKPOINTS
from components.checkpoint_file import CheckpointWriter, checkpoints_in, step_of
from components.errors import UserError
from components.run_files import SUMMARY_NAME

REACHED = "reached"
"""Name of the file in a run's folder that tells how far the run came, beyond its checkpoints."""


class Losses(NamedTuple):
    """What interruptions have cost a run."""

    interruptions: int = 0
    steps: int = 0
    """Optimizer steps that were taken again."""
    seconds: float = 0.0
    """Seconds of training that those steps had taken the first time."""


class Checkpoints(Reporter, Checkpoint):
    """Save the run's state as it trains, the newest two checkpoints kept, and once more after the last step.

    Rank 0 copies the state on the device, which is all that the clock pays; a thread checks and writes it. Every
    checkpoint in the folder is whole and good: the loss of its step and every number in it are finite.

    Args:
        every_seconds: Seconds of training from one checkpoint to the next; 0 for none before the last step.
    """

    stage = Stage.CHECKPOINT

    def __init__(self, every_seconds: float = 60.0) -> None:
        super().__init__()
        if every_seconds < 0:
            raise UserError(
                f"checkpoint.every_seconds is {every_seconds}; set a number of seconds, or 0 for none before the last "
                "step."
            )
        self.every_seconds = every_seconds
        self._writer: CheckpointWriter | None = None
        self._saved_at = 0.0
        self._loss: Tensor | None = None
        self._between_steps = False
        self._losses = Losses()
        self._reached: int | None = None

    @property
    def newest(self) -> Path | None:
        """The run's newest checkpoint; None before the first."""
        found = [] if self._writer is None else checkpoints_in(self._writer.folder)
        return found[0] if found else None

    def how_to_go_on(self) -> str:
        """What to tell the user of a run that has ended early, as a clause."""
        newest = self.newest
        if newest is None:
            return "nothing was saved, so start again"
        return (
            f"to go on from step {step_of(newest)}, give the same command with --ckpt_path last, or with "
            f"--ckpt_path {newest}"
        )

    def save_now(self, trainer: Trainer) -> Path | None:
        """Save the state at once, on rank 0, without asking another rank for anything.

        Inside an optimizer step, where the state belongs to no step, in warm-up, and after training there is nothing
        to save.

        Returns:
            The newest good checkpoint: this one, or an earlier one where it could not be saved; None if there is none.
        """
        assert trainer.is_global_zero
        assert self._writer is not None
        if self._between_steps:
            self._writer.write(trainer.global_step, _state(trainer), self._loss)
            self._warn()
        return self.newest

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take note of the run's folder."""
        if stage == TrainerFn.FITTING:
            log_dir = trainer.log_dir  # a broadcast from rank 0, so every rank must take part
            assert log_dir is not None
            self._writer = CheckpointWriter(Path(log_dir) / CHECKPOINTS)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the time from now, and what the interruption of a resumed run has cost."""
        self._saved_at = find(trainer, Clock).elapsed
        self._between_steps = True
        if trainer.ckpt_path is not None:
            self._count_loss(trainer, Path(trainer.ckpt_path).parents[1])
        if trainer.is_global_zero:
            assert self._writer is not None
            self._reached = os.open(self._writer.folder.with_name(REACHED), os.O_WRONLY | os.O_CREAT)
            self._note_progress(trainer.global_step, self._saved_at)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """From here until every callback has seen the step's end, the state is not to be saved."""
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin a checkpoint after a step if that is due."""
        if not ends_step(trainer, batch_idx):
            return
        self._between_steps = True
        if not trainer.is_global_zero:
            return
        assert self._writer is not None
        self._loss = outputs["loss"]
        elapsed = find(trainer, Clock).elapsed
        self._note_progress(trainer.global_step, elapsed)
        if self.every_seconds and elapsed - self._saved_at >= self.every_seconds and not self._writer.is_busy:
            self._warn()
            self._saved_at = elapsed
            self._writer.start(trainer.global_step, _state(trainer), self._loss)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after the last step; the average has not replaced the weights yet."""
        if trainer.is_global_zero:
            self.save_now(trainer)
        self._between_steps = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a finished run one checkpoint, its last."""
        if self._writer is not None and trainer.is_global_zero:
            self._writer.remove_all_but(1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a checkpoint that is being written become whole."""
        if self._writer is not None:
            self._writer.wait()
            self._warn()
        if self._reached is not None:
            os.close(self._reached)
            self._reached = None

    def state_dict(self) -> dict[str, Any]:
        """What interruptions have cost so far."""
        return self._losses._asdict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what earlier interruptions have cost."""
        self._losses = Losses(**state_dict)

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """How often the run was interrupted, and what that has cost."""
        return {
            "interruptions": self._losses.interruptions,
            "steps_lost": self._losses.steps,
            "seconds_lost": self._losses.seconds,
        }

    def _note_progress(self, step: int, elapsed: float) -> None:
        """Note how far the run has come, where it outlives the process: a few microseconds a step."""
        assert self._reached is not None
        line = f"{step:>12} {elapsed:>16.3f}\n"
        with suppress(OSError):  # a full disk: what an interruption costs will be stated too low
            os.pwrite(self._reached, line.encode(), 0)

    def _count_loss(self, trainer: Trainer, interrupted: Path) -> None:
        """Count what a run's end has cost, unless it was finished."""
        try:
            step, elapsed = (interrupted / REACHED).read_text().split()
        except (OSError, ValueError):
            return  # not a run's folder, or a run that could not note it
        if not (interrupted / SUMMARY_NAME).exists():
            seconds = max(0.0, float(elapsed) - find(trainer, Clock).elapsed)
            steps = max(0, int(step) - trainer.global_step)
            before = self._losses
            self._losses = Losses(before.interruptions + 1, before.steps + steps, before.seconds + seconds)

    def _warn(self) -> None:
        assert self._writer is not None
        for problem in self._writer.take_problems():
            newest = self.newest
            kept = "there is none yet" if newest is None else f"the newest one is {newest}"
            rank_zero_warn(f"A checkpoint is missing: {problem}; training goes on, and {kept}.")


def _state(trainer: Trainer) -> dict[str, Any]:
    """All that a run resumes from: weights, optimizer, callbacks, loops and the stream's position."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
