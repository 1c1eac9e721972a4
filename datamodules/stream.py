"""The training stream: an endless run of token ids over shards, and the spans of it that each rank reads.

The stream is cut into spans of `batch_tokens // micro_batches + 1` ids, one for each micro-batch of an optimizer step.
Rank r of W reads the spans r, r + W, r + 2 W, ..., so that W ranks together read what one rank alone would.
"""

import atexit
import queue
import threading
import warnings
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from components.errors import UserError
from datamodules.shards import TokenIds, open_shard

HANDOVERS_AHEAD = 2
BATCHES_A_HANDOVER = 2
"""To wake the other thread costs up to a quarter of what a batch does."""

Batch = tuple[Tensor, Tensor]
T = TypeVar("T")


class TokenStream:
    """The ids of all shards, one after the other, starting again at the end of the last.

    `len` is the number of ids before it wraps.
    """

    def __init__(self, paths: Sequence[Path], vocab_size: int) -> None:
        """Map every shard, in the order of their names.

        Raises:
            UserError: a shard is not readable (see `open_shard`).
        """
        assert paths
        self.paths = sorted(paths)
        self.vocab_size = vocab_size
        self._shards = [open_shard(path) for path in self.paths]
        self._ends = list(accumulate(len(shard) for shard in self._shards))

    def __len__(self) -> int:
        """Number of ids in all shards together."""
        return self._ends[-1]

    def take(self, position: int, count: int) -> TokenIds:
        """Ids at [position, position + count), wrapping at the end, shape [count].

        Inside one shard this is a view of its memory map. The cost does not depend on the position.

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

    def _report_outsider(self, index: int, start: int, piece: TokenIds) -> None:
        offset = int(np.argmax(piece >= self.vocab_size))
        raise UserError(
            f"token id {piece[offset]} at position {start + offset} of {self.paths[index]} is outside the vocabulary "
            f"of {self.vocab_size}: give the vocabulary size that the shards were made with, or make them again"
        )


class SpanLoader:
    """What one rank reads: an endless iterable of `(input_ids, target_ids)`, int64 tensors of [sequences, seq_len].

    Both are views of one span of ids, shifted by one. Every iterator starts at `position` and assembles batches ahead
    in a background thread.
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
        """Cut the stream into spans.

        Args:
            stream: ids to read.
            position: ids that all ranks together have consumed already.
            batch_tokens: targets of one optimizer step over all ranks.
            micro_batches: spans of one optimizer step over all ranks, whatever the world size.
            seq_len: ids of one training sequence.
            rank: this process among the ranks.
            world_size: number of ranks.
            pin_memory: assemble batches in page-locked memory, for copies to a GPU that do not block.

        Raises:
            UserError: the world size does not divide the micro-batches, or the batch does not divide into micro-batches
                of whole sequences.
        """
        if micro_batches % world_size:
            raise UserError(
                f"a world of {world_size} ranks cannot share the {micro_batches} micro-batches of a step: "
                f"use a number of devices that divides {micro_batches}"
            )
        if batch_tokens <= 0 or batch_tokens % (micro_batches * seq_len):
            raise UserError(
                f"train_batch_tokens {batch_tokens} is not a multiple of {micro_batches} micro-batches of sequences of "
                f"{seq_len} tokens: set --data.train_batch_tokens to a multiple of {micro_batches * seq_len}"
            )
        assert 0 <= rank < world_size
        assert position >= 0
        self.stream = stream
        self.position = position
        self.seq_len = seq_len
        self.rank = rank
        self.world_size = world_size
        self.pin_memory = pin_memory
        self.span_ids = batch_tokens // micro_batches + 1
        self._num_read = 0
        self._said_wrapped = False

    def position_after(self, num_micro_batches: int) -> int:
        """Position of the whole stream once each rank has consumed `num_micro_batches` more of them."""
        return self.position + num_micro_batches * self.world_size * self.span_ids

    @property
    def epoch(self) -> float:
        """Passes over the data up to the last batch handed out: 1.0 when every id has been read once."""
        return self.position_after(self._num_read) / len(self.stream)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Start a background reader at `position`; closing or dropping the iterator ends it."""
        self._num_read = 0
        with closing(read_ahead(self._read_handovers(), HANDOVERS_AHEAD)) as handovers:
            for batch in chain.from_iterable(handovers):
                self._num_read += 1
                self._warn_if_wrapped()
                yield batch

    def _read_handovers(self) -> Iterator[list[Batch]]:
        spans = self._read_spans()
        while True:
            yield list(islice(spans, BATCHES_A_HANDOVER))

    def _read_spans(self) -> Iterator[Batch]:
        position = self.position + self.rank * self.span_ids
        while True:
            span = torch.empty(self.span_ids, dtype=torch.int64, pin_memory=self.pin_memory)
            np.copyto(span.numpy(), self.stream.take(position, self.span_ids))
            input_ids, target_ids = span[:-1], span[1:]
            yield input_ids.view(-1, self.seq_len), target_ids.view(-1, self.seq_len)
            position += self.world_size * self.span_ids

    def _warn_if_wrapped(self) -> None:
        if self.rank == 0 and not self._said_wrapped and self.epoch > 1:
            self._said_wrapped = True
            warnings.warn(
                f"the {len(self.stream)} training tokens have all been read and are now read again from the start; "
                "more shards would avoid the repetition",
                stacklevel=2,
            )


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def read_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Run an iterator in a background thread, up to `depth` items ahead of the consumer.

    An error in the thread is raised again in the consumer. The thread ends when this generator is closed or garbage
    collected, and with the process.
    """
    # Simple queues, because they may be used while the garbage collector interrupts another use of them.
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
        # The garbage collector may run this in the reader itself, which cannot wait for its own end.
        if threading.current_thread() is not thread:
            thread.join()

    # A daemon thread that is inside torch when the interpreter goes can abort the process: end it before.
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
