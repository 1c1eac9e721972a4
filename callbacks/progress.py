"""How far a run is: budget, phase, loss and bits per byte, as a bar on a terminal and as few lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.clock import Clock
from callbacks.common import ends_step, find, phase_of
from callbacks.monitor import Monitor

NUM_LINES = 10
"""Equal parts of the budget after each of which a line is due."""


def is_terminal() -> bool:
    """Whether what a run prints goes to a terminal, where a bar can be redrawn."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class BudgetProgressBar(TQDMProgressBar):
    """Lightning's bar, measured in the run's budget (seconds if limited, otherwise steps) instead of batches."""

    def init_validation_tqdm(self) -> Tqdm:
        """No bar for the validation loop: its single batch is a whole scoring pass, which has its own bar."""
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Measure the bar in the run's budget."""
        clock = find(trainer, Clock)
        self.train_progress_bar.reset(total=_total(trainer))
        self.train_progress_bar.bar_format = (
            "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
            + (" s" if clock.max_seconds else " steps")
            + "{postfix}"
        )
        self._show(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update at every ``refresh_rate``-th optimizer step, at each new phase, and at the last step."""
        if not ends_step(trainer, batch_idx):
            return
        due = trainer.global_step % self.refresh_rate == 0 or trainer.should_stop
        if due or phase_of(trainer) != self.train_progress_bar.desc:
            self._show(trainer)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What is shown after the bar: step, training loss and the last validation."""
        return {**_facts(trainer)}

    def _show(self, trainer: Trainer) -> None:
        bar = self.train_progress_bar
        bar.n = _spent(trainer)
        bar.set_description_str(phase_of(trainer), refresh=False)
        bar.set_postfix(self.get_metrics(trainer, trainer.lightning_module))


class ProgressLines(Callback):
    """The same as whole lines, for a log: at each new phase, tenth of the budget and validation."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[str, int] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line after the first optimizer step of a phase or of a tenth of the budget."""
        if not ends_step(trainer, batch_idx):
            return
        now = phase_of(trainer), int(NUM_LINES * _spent(trainer) / _total(trainer))
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
            facts = ", ".join(f"{name} {value}" for name, value in _facts(trainer).items())
            print(f"{_spent(trainer)}/{_total(trainer)} {unit}, {phase_of(trainer)}: {facts}", flush=True)


def _total(trainer: Trainer) -> float:
    """The run's budget, in seconds or steps."""
    return find(trainer, Clock).train_seconds or trainer.max_steps


def _spent(trainer: Trainer) -> float:
    """How much of it is spent."""
    clock = find(trainer, Clock)
    return round(clock.elapsed, 1) if clock.max_seconds else trainer.global_step


def _facts(trainer: Trainer) -> dict[str, str]:
    """Step, training loss and the last validation."""
    facts = {"step": str(trainer.global_step)}
    loss = find(trainer, Monitor).loss
    if loss is not None:
        facts["loss"] = f"{loss:.4f}"
    return facts | {name: f"{value:.4f}" for name, value in trainer.progress_bar_metrics.items()}
