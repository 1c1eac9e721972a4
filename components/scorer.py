"""Scoring a network on a text: one loop, for the validations of a fit, for ``validate`` and for the export."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from components.scoring import BitsPerByte, Chunk, Score, WindowLoader


class Scorer:
    """Goes through a text's windows, batch by batch and chunk by chunk.

    A scorer that does something between chunks, such as training on what it has scored, sets ``chunk_tokens`` and
    ``after_chunk``; a rank has scored all of its batches of a chunk before it calls that.
    """

    chunk_tokens: int = 0
    """Targets of a chunk; 0 for one chunk of the whole text."""

    @torch.no_grad()  # as in the validation loop of a fit, whose compiled graph then serves everywhere
    def score(self, network: nn.Module, windows: WindowLoader, progress: str | None = None) -> Score:
        """Score every rank's windows.

        Args:
            network: Maps input ids [B, T] and target ids [B, S] to nats [B, S].
            windows: This rank's windows; every rank calls with its own.
            progress: What this rank's progress bar says; None for no bar.

        Returns:
            The totals over all ranks.
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
        return score

    def after_chunk(self, network: nn.Module, windows: WindowLoader, chunk: Chunk, is_last: bool) -> None:
        """Do what follows a chunk that has been scored: nothing."""

    def check(self, seq_len: int) -> None:
        """Refuse, with a UserError, settings that do not go with windows of this many targets: none."""

    def summary(self) -> dict[str, Any]:
        """What the run's record says of the scoring, beside the score: nothing."""
        return {}


class SlidingWindows(Scorer):
    """Score every target once, each with the whole context that its window gives it."""


class ScoringPass:
    """One scoring of a text, ready to be made: the one batch of a validation.

    Args:
        windows: This rank's windows of the text.
        scorer: What goes through them.
        title: What a progress bar says.
    """

    def __init__(self, windows: WindowLoader, scorer: Scorer, title: str) -> None:
        self.windows, self.scorer, self.title = windows, scorer, title

    def run(self, network: nn.Module, show_progress: bool) -> Score:
        """Score the network; every rank must."""
        return self.scorer.score(network, self.windows, self.title if show_progress else None)
