"""Sliding-window scoring in bits per byte: which targets each window scores, batches of windows, and the sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from components.byte_counts import ByteTable
from components.errors import UserError


@dataclass(frozen=True)
class ScoringConfig:
    """How validation text is scored.

    Args:
        seq_len: Targets that a window spans; the most context that a prediction sees, in tokens.
        stride: Tokens from one window's start to the next; each window after the first scores its last stride tokens.
        val_stride: The stride for validation during training; 0 for whole windows, which do not overlap.
        max_tokens: Number of validation ids to score, from the first on; 0 for all.
        windows_per_batch: Windows in one forward pass.
    """

    seq_len: int = 2048
    stride: int = 64
    val_stride: int = 0
    max_tokens: int = 0
    windows_per_batch: int = 32

    def __post_init__(self) -> None:
        """Reject windows that would skip targets or score nothing.

        Raises:
            UserError: A stride is 0 or over the window, or a size is not positive.
        """
        problems = [
            f"scoring.{name} is {getattr(self, name)}; set it to at least 1."
            for name in ("seq_len", "windows_per_batch")
            if getattr(self, name) < 1
        ]
        for name, least, or_none in (("stride", 1, ""), ("val_stride", 0, ", 0 for whole windows")):
            stride = getattr(self, name)
            if not least <= stride <= self.seq_len:
                problems.append(
                    f"scoring.{name} is {stride}; set it from {least} to scoring.seq_len ({self.seq_len}){or_none}: "
                    "other windows would score no target or skip some."
                )
        if self.max_tokens < 0 or self.max_tokens == 1:
            problems.append(
                f"scoring.max_tokens is {self.max_tokens}; set it to 0 for all or to at least 2, one id and its target."
            )
        if problems:
            raise UserError(" ".join(problems))


@dataclass(frozen=True)
class Windows:
    """The windows that score every target of a stream exactly once.

    Window i spans the targets from ``i * stride``, at most ``seq_len`` of them, and scores those that no earlier
    window spanned. The first scores all of its targets, each later one its last ``stride``, the last one the rest.

    Args:
        num_targets: Targets in the stream, one fewer than its ids.
        seq_len: Targets that a window spans.
        stride: Targets from one window's start to the next.
    """

    num_targets: int
    seq_len: int
    stride: int

    def __len__(self) -> int:
        """The number of windows."""
        return 1 + -(-max(0, self.num_targets - self.seq_len) // self.stride)

    def spans(self, indices_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Start, first scored target and end (exclusive) of each window, int64 [B] in targets of the stream."""
        starts = indices_B * self.stride
        ends = (starts + self.seq_len).clamp(max=self.num_targets)
        first_scored = torch.where(indices_B == 0, starts, starts - self.stride + self.seq_len)
        return starts, first_scored, ends


class WindowBatch(NamedTuple):
    """B windows of T inputs for one forward pass, with the targets of their last S positions.

    Positions beyond the stream's end are padding. It is not scored and, by causality, affects no scored position.
    """

    input_ids: Tensor  # int64 [B, T]
    target_ids: Tensor  # int64 [B, S]
    target_bytes: Tensor  # int64 [B, S], of the targets that this window scores, else 0
    scored: Tensor  # bool [B, S]


class Chunk(NamedTuple):
    """A range of windows and a range of targets, each given as first and end (exclusive).

    Once these windows and those before them are scored, so is every target before ``end_target``. The last window may
    score some targets beyond it.
    """

    first_window: int
    end_window: int
    first_target: int
    end_target: int


class WindowLoader:
    """Batches of one rank's windows, assembled on the device from one resident copy of the ids.

    The first window scores all of its targets and has its own batch. Every later one scores only within its last
    ``stride`` targets, and only those are in its batch. So there are at most two batch shapes, and only one if the
    stride is the whole window. Ranks take whole batches in turn, so over all ranks each window appears exactly once.

    Args:
        ids: The stream, integers [N], at least two.
        byte_table: Bytes that each id represents.
        seq_len: Targets that a window spans.
        stride: Targets from one window's start to the next.
        windows_per_batch: Windows per batch.
        device: The batches' device.
        rank: This process among ``world_size``.
        world_size: Processes that share the work.

    Attributes:
        before_batch: Called before each batch; it may end the scoring by raising.
    """

    before_batch: Callable[[], None] | None = None

    def __init__(
        self,
        ids: Tensor,
        byte_table: ByteTable,
        *,
        seq_len: int,
        stride: int,
        windows_per_batch: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert ids.numel() >= 2
        self.windows = Windows(ids.numel() - 1, seq_len, stride)
        self.windows_per_batch = windows_per_batch
        self.device, self.rank, self.world_size = device, rank, world_size
        self.ids, self._byte_table = ids.to(device), byte_table.to(device)

    def __len__(self) -> int:
        """Batches of this rank."""
        [whole] = self.chunks()
        return self.num_batches(whole)

    def __iter__(self) -> Iterator[WindowBatch]:
        """Assemble this rank's batches in order."""
        [whole] = self.chunks()
        return self.batches(whole)

    def chunks(self, num_targets: int = 0) -> list[Chunk]:
        """Cut the text into chunks of ``num_targets`` targets; 0 for one chunk.

        A window belongs to the chunk that its first scored target is in. A chunk may have no windows.
        """
        total = self.windows.num_targets
        edges = [*range(0, total, num_targets), total] if num_targets else [0, total]
        # Window i > 0 scores from (i - 1) * stride + seq_len on. Find the first at or beyond each edge.
        first_windows = [
            min(
                len(self.windows),
                0 if edge == 0 else max(1, 1 - (-(edge - self.windows.seq_len) // self.windows.stride)),
            )
            for edge in edges[:-1]
        ]
        return [
            Chunk(*chunk)
            for chunk in zip(first_windows, [*first_windows[1:], len(self.windows)], edges, edges[1:], strict=False)
        ]

    def num_batches(self, chunk: Chunk) -> int:
        """Batches of a chunk that this rank has."""
        return len(self._first_windows(chunk))

    def batches(self, chunk: Chunk) -> Iterator[WindowBatch]:
        """Assemble this rank's batches of a chunk in order."""
        for first in self._first_windows(chunk):
            if self.before_batch is not None:
                self.before_batch()
            yield self._assemble(first, chunk.end_window)

    def _first_windows(self, chunk: Chunk) -> list[int]:
        """The first window of each of this rank's batches of a chunk."""
        num_alone = 1 if chunk.first_window == 0 and self.windows.stride < self.windows.seq_len else 0
        shared = range(chunk.first_window + num_alone, chunk.end_window, self.windows_per_batch)
        return [*range(num_alone), *shared][self.rank :: self.world_size]

    def _assemble(self, first: int, end: int) -> WindowBatch:
        """The windows from ``first`` on; those past ``end`` repeat the last one and score nothing."""
        alone = first == 0 and self.windows.stride < self.windows.seq_len
        num_windows, num_scored = (1, self.windows.seq_len) if alone else (self.windows_per_batch, self.windows.stride)
        indices = torch.arange(first, first + num_windows, device=self.device)
        starts, first_scored, ends = self.windows.spans(indices.clamp(max=end - 1))
        positions = starts[:, None] + torch.arange(self.windows.seq_len, device=self.device)
        targets = positions[:, -num_scored:]
        scored = (targets >= first_scored[:, None]) & (targets < ends[:, None])
        scored &= (indices < end)[:, None]
        last = self.windows.num_targets - 1
        input_ids = self.ids[positions.clamp(max=last)].long()
        target_ids = self.ids[targets.clamp(max=last) + 1].long()
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
        """Mean cross-entropy per target, in nats."""
        return self.nats / self.num_tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs per byte of text."""
        return self.nats / math.log(2) / self.num_bytes


class BitsPerByte(Metric):
    """Total nats over total bytes: float64 and int64 sums, so that splitting the text over ranks changes nothing.

    Bits per byte, nats / ln 2 / bytes of text, is comparable across vocabularies; mean loss is not.
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

    @property
    def update_called(self) -> bool:
        """Yes: a rank without a batch has its totals, zeros, so torchmetrics need not warn of it."""
        return True

    def update(self, nats: Tensor, batch: WindowBatch) -> None:
        """Add the scored targets of a batch.

        Args:
            nats: Cross-entropy of each target, float [B, S].
            batch: The windows of these targets.
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
