"""Validation in bits per byte, every target scored exactly once over all ranks."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from components.scoring import BitsPerByte, Score, WindowBatch


class SlidingWindowScore(Callback):
    """Sum what the validation loop's windows score, and log it as ``val_loss`` (nats a token) and ``val_bpb``."""

    def __init__(self) -> None:
        super().__init__()
        self.score: Score | None = None
        self._metric = BitsPerByte()
        self._started = 0.0
        self._seconds = 0.0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._started = time.perf_counter()
        self._metric = BitsPerByte().to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: WindowBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch's nats, float [B, S]."""
        self._metric.update(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the ranks' sums together and log them."""
        self.score = self._metric.compute()
        self._seconds = time.perf_counter() - self._started
        # The sums are of all ranks already.
        for name, value in (("val_loss", self.score.loss), ("val_bpb", self.score.bits_per_byte)):
            pl_module.log(name, value, prog_bar=True, sync_dist=False, rank_zero_only=False)

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """What the summary of a ``validate`` says of the score; a fit's is of its exported file, and in Export's."""
        if trainer.state.fn != TrainerFn.VALIDATING or self.score is None:
            return {}
        return {**score_summary(self.score), "eval_time_seconds": self._seconds}


def score_summary(score: Score) -> dict[str, Any]:
    """The summary's words for a score."""
    return {
        "val_loss": score.loss,
        "val_bpb": score.bits_per_byte,
        "tokens_scored": score.num_tokens,
        "bytes_scored": score.num_bytes,
        "windows": score.num_windows,
    }
