"""Score-first test-time training: the network learns from text only after that text has been scored.

Source of the rule and its settings: openai/parameter-golf, pull requests 549 and 1493. A target is scored once, by
weights that have seen only what comes before its chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.errors import UserError
from components.scorer import Scorer
from components.scoring import Chunk, Score, WindowLoader

MAX_GRADIENT_NORM = 1.0


class ScoreFirstTraining(Scorer):
    """Score a chunk of the text, train all weights on it with SGD, and continue with the next chunk.

    The learning rate falls over the chunks by half a cosine; momentum carries over between chunks. The last chunk is
    not trained on, because nothing is scored after it. The network's original weights are then restored.

    Args:
        chunk_tokens: Targets that are scored before the network trains on them.
        epochs: Passes over a chunk's sequences; 0 for none, which is plain sliding-window scoring.
        lr: Learning rate for the first chunk.
        momentum: Share of SGD's momentum buffer that is kept each step.
        batch_seqs: Sequences per step over all ranks.
    """

    def __init__(
        self,
        chunk_tokens: int = 32_768,
        epochs: int = 3,
        lr: float = 0.005,
        momentum: float = 0.9,
        batch_seqs: int = 32,
    ) -> None:
        for name, value, least in (
            ("chunk_tokens", chunk_tokens, 1),
            ("epochs", epochs, 0),
            ("batch_seqs", batch_seqs, 1),
        ):
            if value < least:
                raise UserError(f"scorer.{name} is {value}; set it to at least {least}.")
        if not (lr > 0 and math.isfinite(lr)):
            raise UserError(f"scorer.lr is {lr}; set a learning rate above 0.")
        if not 0 <= momentum < 1:
            raise UserError(f"scorer.momentum is {momentum}; set a share from 0 to below 1.")
        self.chunk_tokens = chunk_tokens
        self.epochs = epochs
        self.lr = lr
        self.momentum = momentum
        self.batch_seqs = batch_seqs
        self._optimizer: torch.optim.Optimizer | None = None
        self._trained: list[list[int]] = []

    def check(self, seq_len: int) -> None:
        """Reject chunks that hold no training sequence.

        Raises:
            UserError: A chunk is shorter than a window.
        """
        if self.chunk_tokens < seq_len:
            raise UserError(
                f"scorer.chunk_tokens is {self.chunk_tokens}, too few for a sequence of scoring.seq_len {seq_len}; "
                "set it to at least that."
            )

    def score(self, network: nn.Module, windows: WindowLoader, progress: str | None = None) -> Score:
        """Score every rank's windows, training in between, then restore the network's weights; see `Scorer`."""
        parameters: list[Tensor] = list(network.parameters())
        saved = [p.detach().clone() for p in parameters]
        self._optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
        self._trained = []
        try:
            return super().score(network, windows, progress)
        finally:
            self._optimizer = None
            with torch.no_grad():
                torch._foreach_copy_(parameters, saved)
            network.zero_grad(set_to_none=True)

    def after_chunk(self, network: nn.Module, windows: WindowLoader, chunk: Chunk, is_last: bool) -> None:
        """Train on the chunk's complete sequences, each batch split over the ranks."""
        seq_len = windows.windows.seq_len
        num_sequences = (chunk.end_target - chunk.first_target) // seq_len
        if is_last or not self.epochs or not num_sequences:
            return
        assert self._optimizer is not None
        num_chunks = -(-windows.windows.num_targets // self.chunk_tokens)
        position = chunk.first_target // self.chunk_tokens / max(1, num_chunks - 1)
        for group in self._optimizer.param_groups:
            group["lr"] = self.lr * (1 + math.cos(math.pi * position)) / 2
        # The trainer validates in inference mode, which enable_grad alone does not leave.
        with torch.inference_mode(False), torch.enable_grad():
            # One more id than targets: the first one's input.
            ids = windows.ids[chunk.first_target : chunk.first_target + num_sequences * seq_len + 1]
            ids = ids.to(torch.int64, copy=True)
            for _ in range(self.epochs):
                for batch in _batches(ids, seq_len, self.batch_seqs):
                    self._step(network, batch, windows.rank, windows.world_size, seq_len)
        self._trained.append([chunk.first_target, chunk.first_target + num_sequences * seq_len, chunk.end_target])

    def _step(self, network: nn.Module, batch: Tensor, rank: int, world_size: int, seq_len: int) -> None:
        """One step on a batch of sequences, each with the id that follows it, [sequences, seq_len + 1]."""
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)
        share = batch.tensor_split(world_size)[rank]
        if len(share):
            (network(share[:, :-1], share[:, 1:]).sum() / (len(batch) * seq_len)).backward()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        if world_size > 1:
            # A rank without sequences, or a weight without a gradient there, adds nothing.
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.grad = gradient.view_as(p)
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        self._optimizer.step()

    def summary(self) -> dict[str, Any]:
        """The settings and, for each training, its targets [first, end) and the end of what had been scored."""
        return {
            "test_time_training": {
                "chunk_tokens": self.chunk_tokens,
                "epochs": self.epochs,
                "lr": self.lr,
                "momentum": self.momentum,
                "batch_seqs": self.batch_seqs,
                "trained": self._trained,
            }
        }

    def describe(self) -> list[str]:
        """What it trained on, and when."""
        num_targets = sum(end - first for first, end, _ in self._trained)
        return [
            f"Test-time training: {len(self._trained):,} chunks of {self.chunk_tokens:,} targets, {num_targets:,} "
            f"targets in all, each trained on for {self.epochs} epochs at a learning rate from {self.lr:g} down, after "
            "it was scored."
        ]


def _batches(ids: Tensor, seq_len: int, batch_seqs: int) -> Iterator[Tensor]:
    """Nonoverlapping sequences, each with the id that follows it, in batches of at most ``batch_seqs``."""
    return iter(ids.unfold(0, seq_len + 1, seq_len).split(batch_seqs))
