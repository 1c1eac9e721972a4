"""Sliding-window scoring in bits per byte: which targets each window scores, batches of windows, and the sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from tqdm import tqdm

from components.byte_counts import ByteTable
from components.errors import UserError


@dataclass(frozen=True)
class ScoringConfig:
    """How validation text is scored.

    Args:
        seq_len: Targets a window spans, the most context that a prediction sees, in tokens.
        stride: Tokens from one window's start to the next; each window after the first scores its last so many.
        fit_stride: The stride of the validations during training; equal to seq_len they score plain chunks.
        max_tokens: Score only the first so many validation ids; 0 for all.
        batch_windows: Windows in one forward pass.
    """

    seq_len: int = 2048
    stride: int = 64
    fit_stride: int = 2048
    max_tokens: int = 0
    batch_windows: int = 32

    def __post_init__(self) -> None:
        """Refuse windows that would skip targets or score nothing.

        Raises:
            UserError: A stride is 0 or over the window, or a size is not positive.
        """
        for name in ("seq_len", "batch_windows"):
            if getattr(self, name) < 1:
                raise UserError(f"scoring.{name} is {getattr(self, name)}; set it to at least 1.")
        for name in ("stride", "fit_stride"):
            stride = getattr(self, name)
            if not 1 <= stride <= self.seq_len:
                raise UserError(
                    f"scoring.{name} is {stride}; set it from 1 to scoring.seq_len ({self.seq_len}), "
                    "or windows would score no target or skip some."
                )
        if self.max_tokens < 0 or self.max_tokens == 1:
            raise UserError(
                f"scoring.max_tokens is {self.max_tokens}; set it to 0 for all or to at least 2, one id and its target."
            )


@dataclass(frozen=True)
class Windows:
    """The windows that score every target of a stream exactly once.

    Window i spans the targets from ``i * stride``, at most ``seq_len`` of them, and scores those that no earlier
    window spanned: the first all of its own, each later one its last ``stride``, the last one what is left.

    Args:
        num_targets: Targets in the stream, one fewer than its ids.
        seq_len: Targets that a window spans.
        stride: Targets from one window's start to the next.
    """

    num_targets: int
    seq_len: int
    stride: int

    def __len__(self) -> int:
        """How many windows there are."""
        return 1 + -(-max(0, self.num_targets - self.seq_len) // self.stride)

    def spans(self, indices_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Start, first scored target and end (exclusive) of each window, int64 [B] in targets of the stream."""
        starts = indices_B * self.stride
        ends = (starts + self.seq_len).clamp(max=self.num_targets)
        first_scored = torch.where(indices_B == 0, starts, starts - self.stride + self.seq_len)
        return starts, first_scored, ends


class WindowBatch(NamedTuple):
    """B windows of T inputs for one forward pass, with the targets of their last S positions.

    What a window spans beyond the stream's end is padding: causal, so that it touches no scored position, and not
    scored.
    """

    input_ids: Tensor  # int64 [B, T]
    target_ids: Tensor  # int64 [B, S]
    target_bytes: Tensor  # int64 [B, S], of the targets that this window scores, else 0
    scored: Tensor  # bool [B, S]


class WindowLoader:
    """Batches of one rank's windows, assembled on the device from one resident copy of the ids.

    The first window scores all of its targets and has a batch to itself; every later one scores among its last
    ``stride``, and only those targets are in its batch. So there are two shapes of batch at the most, and where the
    stride is the whole window, one. Ranks take whole batches in turn, so over all of them each window comes exactly
    once.

    Args:
        ids: The stream, integers [N], at least two.
        byte_table: Bytes that each id stands for.
        seq_len: Targets that a window spans.
        stride: Targets from one window's start to the next.
        batch_windows: Windows a batch.
        device: Where batches are wanted.
        rank: This process among ``world_size``.
        world_size: Processes that share the work.
    """

    def __init__(
        self,
        ids: Tensor,
        byte_table: ByteTable,
        *,
        seq_len: int,
        stride: int,
        batch_windows: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert ids.numel() >= 2
        self.windows = Windows(ids.numel() - 1, seq_len, stride)
        self.batch_windows = batch_windows
        self.device, self.rank, self.world_size = device, rank, world_size
        self._ids, self._byte_table = ids.to(device), byte_table.to(device)

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._first_windows())

    def __iter__(self) -> Iterator[WindowBatch]:
        """Assemble this rank's batches in order."""
        for first in self._first_windows():
            yield self._assemble(first)

    def _first_windows(self) -> list[int]:
        """The first window of each of this rank's batches; a rank that is left without has one that scores nothing.

        Every rank needs a batch: the trainer refuses an empty loader, and on that rank alone.
        """
        num_alone = 0 if self.windows.stride == self.windows.seq_len else 1
        firsts = [*range(num_alone), *range(num_alone, len(self.windows), self.batch_windows)]
        return firsts[self.rank :: self.world_size] or [len(self.windows)]

    def _assemble(self, first: int) -> WindowBatch:
        """The windows from ``first`` on; those past the last one are repeats of it that score nothing."""
        alone = first == 0 and self.windows.stride < self.windows.seq_len
        num_windows, num_scored = (1, self.windows.seq_len) if alone else (self.batch_windows, self.windows.stride)
        indices = torch.arange(first, first + num_windows, device=self.device)
        starts, first_scored, ends = self.windows.spans(indices.clamp(max=len(self.windows) - 1))
        positions = starts[:, None] + torch.arange(self.windows.seq_len, device=self.device)
        targets = positions[:, -num_scored:]
        scored = (targets >= first_scored[:, None]) & (targets < ends[:, None])
        scored &= (indices < len(self.windows))[:, None]
        last = self.windows.num_targets - 1
        input_ids = self._ids[positions.clamp(max=last)].long()
        target_ids = self._ids[targets.clamp(max=last) + 1].long()
        target_bytes = self._byte_table.target_bytes(input_ids[:, -num_scored:], target_ids) * scored
        return WindowBatch(input_ids, target_ids, target_bytes, scored)


class Score(NamedTuple):
    """Totals over the scored text."""

    nats: float
    num_bytes: int
    num_tokens: int
    num_windows: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy of a target, in nats."""
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text."""
        return self.nats / math.log(2) / self.num_bytes


class BitsPerByte(Metric):
    """Total nats over total bytes: float64 and int64 sums, so that splitting the text over ranks changes nothing.

    Bits per byte, unlike the mean loss, compares across vocabularies: nats / ln 2 / bytes of the text.
    """

    full_state_update = False
    nats: Tensor
    num_bytes: Tensor
    num_tokens: Tensor
    num_windows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("num_bytes", "num_tokens", "num_windows"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, batch: WindowBatch) -> None:
        """Add the scored targets of a batch.

        Args:
            nats: Cross-entropy of each target, float [B, S].
            batch: The windows that they are of.
        """
        self.nats += nats.double().masked_fill(~batch.scored, 0.0).sum()
        self.num_bytes += batch.target_bytes.sum()
        self.num_tokens += batch.scored.sum()
        self.num_windows += batch.scored.any(dim=1).sum()

    def compute(self) -> Score:
        """The totals over all ranks."""
        return Score(
            nats=float(self.nats),
            num_bytes=int(self.num_bytes),
            num_tokens=int(self.num_tokens),
            num_windows=int(self.num_windows),
        )


@torch.no_grad()  # as in the validation loop of a fit, whose compiled graph then serves here too
def score(network: nn.Module, batches: WindowLoader, progress: str | None = None) -> Score:
    """Score the windows of every rank's ``batches``.

    Args:
        network: Maps input ids [B, T] and target ids [B, S] to nats [B, S].
        batches: This rank's windows; every rank calls with its own.
        progress: What this rank's progress bar says; None for no bar.

    Returns:
        The totals over all ranks.
    """
    metric = BitsPerByte().to(batches.device)
    for batch in tqdm(batches, desc=progress, disable=progress is None, leave=False, unit="batch"):
        metric.update(network(batch.input_ids, batch.target_ids), batch)
    result = metric.compute()
    assert isinstance(result, Score)
    return result
