"""Validation in bits per byte, every target scored exactly once over all ranks."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Reporter, Stage, data_of, find, log_metrics, network_of
from callbacks.signals import Signals
from components.scorer import ScoringPass
from components.scoring import Score


class ValidationScore(Reporter):
    """Show a validation's score as ``val_loss`` (nats per token) and ``val_bpb``, and log the curve of both."""

    stage = Stage.OBSERVER

    def __init__(self) -> None:
        super().__init__()
        self.score: Score | None = None
        self._started = 0.0
        self._seconds = 0.0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start timing."""
        self._started = time.perf_counter()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: ScoringPass,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the score of the validation's single pass."""
        self.score = outputs
        self._seconds = time.perf_counter() - self._started

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the score."""
        assert self.score is not None
        # The trainer's own logging would add a curve of epochs, of which an endless stream has one. The sums already
        # cover all ranks.
        for name, value in (("val_loss", self.score.loss), ("val_bpb", self.score.bits_per_byte)):
            pl_module.log(name, value, prog_bar=True, logger=False, sync_dist=False, rank_zero_only=False)
        if not trainer.sanity_checking:
            log_metrics(trainer, {"bits_per_byte/val": self.score.bits_per_byte, "loss/val": self.score.loss})

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The score of ``validate``; a fit's result is the score of its exported file, which Export reports."""
        if trainer.state.fn != TrainerFn.VALIDATING or self.score is None:
            return {}
        return {**score_summary(self.score), "eval_time_seconds": self._seconds}


def score_result(trainer: Trainer, pl_module: LightningModule, title: str, done: str) -> tuple[Score, float]:
    """Score the network as a run's result, outside the trainer's loops.

    Args:
        trainer: The trainer.
        pl_module: The module.
        title: Text of the progress bar.
        done: What to tell the user, as a clause, if a signal ends the scoring.

    Returns:
        The score, and the seconds that it took.
    """
    started = time.perf_counter()
    scoring = data_of(trainer).final_pass(title)
    find(trainer, Signals).may_end(scoring, done)
    score = _run(trainer, pl_module, scoring)
    return score, time.perf_counter() - started


def score_as_validation(trainer: Trainer, pl_module: LightningModule, title: str) -> Score:
    """Score the network as a fit's validations do, outside the trainer's loops.

    Such scores compare with each other and with the validation curve. They cost a small part of a result's: whole
    windows of 2,048 tokens score each token once, where a stride of 64 computes it 32 times.
    """
    return _run(trainer, pl_module, data_of(trainer).validation_pass(title))


def _run(trainer: Trainer, pl_module: LightningModule, scoring: ScoringPass) -> Score:
    pl_module.to(trainer.strategy.root_device)  # after a fit, the trainer's teardown has moved it to the CPU
    pl_module.eval()
    with trainer.precision_plugin.val_step_context():
        return scoring.run(network_of(pl_module), shows_progress(trainer))


def shows_progress(trainer: Trainer) -> bool:
    """Whether this rank shows progress bars."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def score_summary(score: Score) -> dict[str, Any]:
    """A score as fields of the run summary."""
    return {
        "val_loss": score.loss,
        "val_bpb": score.bits_per_byte,
        "tokens_scored": score.num_tokens,
        "bytes_scored": score.num_bytes,
        "windows": score.num_windows,
    }
