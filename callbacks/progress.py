"""The progress bar: how much of the budget is spent, the phase of the run, loss and bits per byte."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from callbacks.clock import Clock
from callbacks.common import ends_step, find, phase_of
from callbacks.monitor import Monitor


class BudgetProgressBar(TQDMProgressBar):
    """Lightning's bar, measured in the run's budget (seconds if limited, otherwise steps) instead of batches."""

    def init_validation_tqdm(self) -> Tqdm:
        """No bar for the validation loop: its single batch is a whole scoring pass, which has its own bar."""
        return Tqdm(disable=True)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Measure the bar in the run's budget."""
        clock = find(trainer, Clock)
        self.train_progress_bar.reset(total=clock.train_seconds or trainer.max_steps)
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
        metrics: dict[str, int | str | float | dict[str, float]] = {"step": str(trainer.global_step)}
        loss = find(trainer, Monitor).loss
        if loss is not None:
            metrics["loss"] = f"{loss:.4f}"
        return metrics | {name: f"{value:.4f}" for name, value in trainer.progress_bar_metrics.items()}

    def _show(self, trainer: Trainer) -> None:
        bar, clock = self.train_progress_bar, find(trainer, Clock)
        bar.n = round(clock.elapsed, 1) if clock.max_seconds else trainer.global_step
        bar.set_description_str(phase_of(trainer), refresh=False)
        bar.set_postfix(self.get_metrics(trainer, trainer.lightning_module))
