"""The training stream: endless token ids from shards, and the micro-batches that each rank reads.

The order of the run's micro-batches does not depend on the number of ranks. Rank r of W reads micro-batches
r, r + W, r + 2 W, ..., so W ranks together read what one rank alone would.
"""

import atexit
import queue
import threading
import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.errors import UserError
from datamodules.shards import TOKEN_DTYPE, TokenIds, open_shard

HANDOVERS_AHEAD = 2
BATCHES_A_HANDOVER = 2
"""Waking the other thread costs up to a quarter of a batch."""

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")


class TokenStream:
    """The ids of all shards in sequence, wrapping around at the end.

    `len` is the number of ids before wrapping around.
    """

    def __init__(self, paths: Sequence[Path], vocab_size: int) -> None:
        """Map every shard, in name order.

        Raises:
            UserError: a shard cannot be read (see `open_shard`).
        """
        assert paths
        self.paths = sorted(paths)
        self.vocab_size = vocab_size
        self._shards = [open_shard(path) for path in self.paths]
        self._views = [shard.data for shard in self._shards]
        self._ends = list(accumulate(len(shard) for shard in self._shards))
        self._boundaries = np.array([0, *self._ends])

    def __len__(self) -> int:
        """Total number of ids in all shards."""
        return self._ends[-1]

    @property
    def shard_lengths(self) -> list[int]:
        """Number of ids in each shard, in stream order."""
        return [len(shard) for shard in self._shards]

    def take(self, position: int, count: int) -> TokenIds:
        """Ids at [position, position + count), wrapping around at the end, shape [count].

        Within one shard, this is a view of its memory map. The cost does not depend on the position.

        Raises:
            UserError: one of these ids is outside the vocabulary.
        """
        pieces = []
        while count > 0:
            position %= len(self)
            index = bisect_right(self._ends, position)
            start = position - (self._ends[index] - len(self._shards[index]))
            piece = self._shards[index][start : start + count]
            if piece.max() >= self.vocab_size:
                self._report_outsider(index, start, piece)
            pieces.append(piece)
            position += len(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take_each(self, positions: npt.NDArray[np.int64], count: int) -> TokenIds:
        """Ids at [p, p + count) for each position p, shape [positions, count]; each must lie within one shard.

        Raises:
            UserError: one of these ids is outside the vocabulary.
        """
        indices = self._boundaries.searchsorted(positions, side="right") - 1
        places = list(zip(indices.tolist(), (positions - self._boundaries[indices]).tolist(), strict=True))
        # Joining buffers takes half as long as NumPy's assignment or concatenation.
        joined = b"".join([self._views[index][start : start + count] for index, start in places])
        ids = np.frombuffer(joined, dtype=TOKEN_DTYPE).reshape(len(places), count)
        if ids.max() >= self.vocab_size:
            for (index, start), row in zip(places, ids, strict=True):
                if row.max() >= self.vocab_size:
                    self._report_outsider(index, start, row)
        return ids

    def _report_outsider(self, index: int, start: int, piece: TokenIds) -> None:
        offset = int(np.argmax(piece >= self.vocab_size))
        raise UserError(
            f"token id {piece[offset]} at position {start + offset} of {self.paths[index]} is outside the "
            f"vocabulary of {self.vocab_size}: give the tokenizer that the shards were made with, or make them again"
        )


def check_batch(batch_tokens: int, micro_batches: int, seq_len: int, world_size: int) -> None:
    """Refuse a step that cannot be divided; the arguments are those of `StreamLoader`.

    Raises:
        UserError: the world size does not divide the micro-batches, or the batch does not divide into micro-batches of
            whole sequences.
    """
    problems = []
    if micro_batches % world_size:
        problems.append(
            f"a world of {world_size} ranks cannot share the {micro_batches} micro-batches of a step: "
            f"use a number of devices that divides {micro_batches}"
        )
    if batch_tokens <= 0 or batch_tokens % (micro_batches * seq_len):
        problems.append(
            f"train_batch_tokens {batch_tokens} is not a multiple of {micro_batches} micro-batches of sequences of "
            f"{seq_len} tokens: set --data.train_batch_tokens to a multiple of {micro_batches * seq_len}"
        )
    if problems:
        raise UserError("; ".join(problems))


class StreamLoader(ABC):
    """One rank's endless iterable of `(input_ids, target_ids)`, int64 tensors [sequences, seq_len].

    Both are views of one buffer, shifted by one (see `to_device`). Every iterator starts at `position` and prefetches
    batches in a background thread.
    """

    def __init__(
        self,
        stream: TokenStream,
        position: int,
        batch_tokens: int,
        micro_batches: int,
        seq_len: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Split the stream into micro-batches.

        Args:
            stream: ids to read.
            position: ids already consumed by all ranks together.
            batch_tokens: targets per optimizer step over all ranks.
            micro_batches: micro-batches per optimizer step over all ranks, for any world size.
            seq_len: ids per training sequence.
            rank: this process's rank.
            world_size: number of ranks.
            pin_memory: use page-locked memory, for non-blocking copies to a GPU.

        Raises:
            UserError: see `check_batch`.
        """
        check_batch(batch_tokens, micro_batches, seq_len, world_size)
        assert 0 <= rank < world_size
        assert position >= 0
        self.stream = stream
        self.position = position
        self.seq_len = seq_len
        self.num_targets = batch_tokens // micro_batches
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self._num_read = 0
        self._said_wrapped = False

    @property
    @abstractmethod
    def ids_per_micro_batch(self) -> int:
        """How far one micro-batch advances the position."""

    @abstractmethod
    def empty_buffer(self, device: torch.device | str = "cpu", pin_memory: bool = False) -> Tensor:
        """An int64 buffer for one micro-batch."""

    @abstractmethod
    def split(self, buffer: Tensor) -> Batch:
        """View a buffer as input and target ids, [sequences, seq_len] each."""

    @abstractmethod
    def _read(self) -> Iterator[TokenIds]:
        """Yield this rank's micro-batches from `position` on, in the buffer's shape."""

    def position_after(self, num_micro_batches: int) -> int:
        """The stream's position once each rank has consumed `num_micro_batches` more micro-batches."""
        return self.position + num_micro_batches * self.world_size * self.ids_per_micro_batch

    @property
    def epoch(self) -> float:
        """Passes over the data up to the last batch yielded: 1.0 once as many ids as exist were read."""
        return self.position_after(self._num_read) / len(self.stream)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Start a background reader at `position`; closing or dropping the iterator stops it."""
        self._num_read = 0
        with closing(read_ahead(self._read_handovers(), HANDOVERS_AHEAD)) as handovers:
            for batch in chain.from_iterable(handovers):
                self._num_read += 1
                self._warn_if_wrapped()
                yield batch

    def _read_handovers(self) -> Iterator[list[Batch]]:
        batches = self._read_batches()
        while True:
            yield list(islice(batches, BATCHES_A_HANDOVER))

    def _read_batches(self) -> Iterator[Batch]:
        for ids in self._read():
            buffer = self.empty_buffer(pin_memory=self.pin_memory)
            np.copyto(buffer.numpy(), ids)
            yield self.split(buffer)

    def _warn_if_wrapped(self) -> None:
        if self.rank == 0 and not self._said_wrapped and self.epoch > 1:
            self._said_wrapped = True
            warnings.warn(
                f"the {len(self.stream)} training tokens have all been read and are now read again; "
                "more text would avoid the repetition",
                stacklevel=2,
            )


class SpanLoader(StreamLoader):
    """The stream in order: micro-batch k of the run is the k-th span of `num_targets + 1` ids."""

    @property
    def ids_per_micro_batch(self) -> int:
        """The length of a span."""
        return self.num_targets + 1

    def empty_buffer(self, device: torch.device | str = "cpu", pin_memory: bool = False) -> Tensor:
        """An empty span, shape [num_targets + 1]."""
        return torch.empty(self.ids_per_micro_batch, dtype=torch.int64, device=device, pin_memory=pin_memory)

    def split(self, buffer: Tensor) -> Batch:
        """Split a span into sequences, each of which continues the previous one."""
        return buffer[:-1].view(-1, self.seq_len), buffer[1:].view(-1, self.seq_len)

    def _read(self) -> Iterator[TokenIds]:
        position = self.position + self.rank * self.ids_per_micro_batch
        while True:
            yield self.stream.take(position, self.ids_per_micro_batch)
            position += self.world_size * self.ids_per_micro_batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy a loader's batch to a device; the buffer that both tensors view is copied once.

    The copy does not block if the buffer is pinned; a copy of a view with gaps would. Strides are preserved, so a
    compiled graph fits any device.
    """
    num_ids = batch[0].untyped_storage().nbytes() // batch[0].element_size()
    buffer = batch[0].as_strided((num_ids,), (1,), 0).to(device, non_blocking=True)
    input_ids, target_ids = (buffer.as_strided(ids.shape, ids.stride(), ids.storage_offset()) for ids in batch)
    return input_ids, target_ids


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Run an iterator in a background thread, up to `depth` items ahead of the consumer.

    An error in the thread is reraised in the consumer. The thread stops when this generator is closed or garbage
    collected, or when the process exits.
    """
    # SimpleQueue is reentrant: the garbage collector may interrupt one use with another.
    ready: queue.SimpleQueue[T | _Failure | None] = queue.SimpleQueue()
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    for _ in range(depth):
        room.put(None)
    stop = threading.Event()

    def fill() -> None:
        try:
            for item in items:
                room.get()
                if stop.is_set():
                    return
                ready.put(item)
            ready.put(None)
        except BaseException as error:
            ready.put(_Failure(error))

    thread = threading.Thread(target=fill, name="token stream reader", daemon=True)

    def end() -> None:
        stop.set()
        room.put(None)
        # The garbage collector may run this in the reader thread, which cannot join itself.
        if threading.current_thread() is not thread:
            thread.join()

    # A daemon thread inside torch at interpreter shutdown can abort the process: stop it first.
    atexit.register(end)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            room.put(None)
            yield item
    finally:
        end()
        atexit.unregister(end)
