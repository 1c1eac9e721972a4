"""How far a run is, as few lines: budget, phase, loss and bits per byte."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.clock import Clock
from callbacks.common import ends_step, find, phase_of
from callbacks.monitor import Monitor

NUM_LINES = 10
"""Equal parts of the budget after each of which a line is due."""


class ProgressLines(Callback):
    """Write a line at each new phase, tenth of the budget and validation."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[str, int] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line after the first optimizer step of a phase or of a tenth of the budget."""
        if not ends_step(trainer, batch_idx):
            return
        now = phase_of(trainer), int(NUM_LINES * spent_of(trainer) / budget_of(trainer))
        if now != self._last:
            self._last = now
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line with the score of a fit's validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            unit = "s" if find(trainer, Clock).max_seconds else "steps"
            facts = ", ".join(f"{name} {value}" for name, value in facts_of(trainer).items())
            print(f"{spent_of(trainer)}/{budget_of(trainer)} {unit}, {phase_of(trainer)}: {facts}", flush=True)


def budget_of(trainer: Trainer) -> float:
    """The run's budget, in seconds or steps."""
    return find(trainer, Clock).train_seconds or trainer.max_steps


def spent_of(trainer: Trainer) -> float:
    """How much of it is spent."""
    clock = find(trainer, Clock)
    return round(clock.elapsed, 1) if clock.max_seconds else trainer.global_step


def facts_of(trainer: Trainer) -> dict[str, str]:
    """Step, training loss and the last validation."""
    facts = {"step": str(trainer.global_step)}
    loss = find(trainer, Monitor).loss
    if loss is not None:
        facts["loss"] = f"{loss:.4f}"
    return facts | {name: f"{value:.4f}" for name, value in trainer.progress_bar_metrics.items()}
