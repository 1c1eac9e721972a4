"""How far a run is, as a bar on a terminal."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from callbacks.clock import Clock
from callbacks.common import ends_step, find, phase_of
from callbacks.progress import budget_of, facts_of, spent_of


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
        self.train_progress_bar.reset(total=budget_of(trainer))
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
        return {**facts_of(trainer)}

    def _show(self, trainer: Trainer) -> None:
        bar = self.train_progress_bar
        bar.n = spent_of(trainer)
        bar.set_description_str(phase_of(trainer), refresh=False)
        bar.set_postfix(self.get_metrics(trainer, trainer.lightning_module))
