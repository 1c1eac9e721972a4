"""Scoring a network on a text: one loop for validation during a fit, for ``validate`` and for export."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from components.errors import UserError
from components.scoring import BitsPerByte, Chunk, Score, WindowLoader


class Scorer:
    """Goes through a text's windows, batch by batch and chunk by chunk.

    A scorer that acts between chunks, such as by training on what it has scored, sets ``chunk_tokens`` and overrides
    ``after_chunk``. A rank calls it after scoring all of its batches of a chunk.
    """

    chunk_tokens: int = 0
    """Targets of a chunk; 0 for one chunk of the whole text."""

    @torch.no_grad()  # as in the validation loop of a fit, whose compiled graph then serves everywhere
    def score(self, network: nn.Module, windows: WindowLoader, progress: str | None = None) -> Score:
        """Score every rank's windows.

        Args:
            network: Maps input ids [B, T] and target ids [B, S] to nats [B, S].
            windows: This rank's windows; every rank calls with its own.
            progress: Text of this rank's progress bar; None for no bar.

        Returns:
            The totals over all ranks.

        Raises:
            UserError: The score is not a finite number.
        """
        metric = BitsPerByte().to(windows.device)
        chunks = windows.chunks(self.chunk_tokens)
        num_batches = sum(map(windows.num_batches, chunks))
        with tqdm(total=num_batches, desc=progress, disable=progress is None, leave=False, unit="batch") as bar:
            for chunk in chunks:
                for batch in windows.batches(chunk):
                    metric.update(network(batch.input_ids, batch.target_ids), batch)
                    bar.update()
                self.after_chunk(network, windows, chunk, is_last=chunk is chunks[-1])
        score = metric.compute()
        assert isinstance(score, Score)
        if not math.isfinite(score.nats):
            raise UserError(
                f"The network's score is {score.nats}, because its weights or settings are damaged or its training "
                "diverged; score other weights, or train again with a lower learning rate."
            )
        return score

    def after_chunk(self, network: nn.Module, windows: WindowLoader, chunk: Chunk, is_last: bool) -> None:
        """Run after each scored chunk; does nothing here."""

    def check(self, seq_len: int) -> None:
        """Reject, with a UserError, settings that do not fit windows of this many targets; none here."""

    def summary(self) -> dict[str, Any]:
        """Entries for the run's record other than the score; none here."""
        return {}

    def describe(self) -> list[str]:
        """Sentences that tell a reader what it did other than scoring; none here."""
        return []


class SlidingWindows(Scorer):
    """Score every target once, each with the whole context that its window gives it."""


class ScoringPass:
    """One scoring of a text, ready to run: the one batch of a validation.

    Args:
        windows: This rank's windows of the text.
        scorer: The scorer to run.
        title: Text of the progress bar.
    """

    def __init__(self, windows: WindowLoader, scorer: Scorer, title: str) -> None:
        self.windows, self.scorer, self.title = windows, scorer, title

    def run(self, network: nn.Module, show_progress: bool) -> Score:
        """Score the network; every rank must call."""
        return self.scorer.score(network, self.windows, self.title if show_progress else None)
