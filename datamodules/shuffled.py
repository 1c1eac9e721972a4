"""The training stream in random order: every sequence of every shard once a pass."""

from collections.abc import Iterator, Sequence
from math import isqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.errors import UserError
from datamodules.shards import TokenIds
from datamodules.stream import Batch, StreamLoader, TokenStream

Integers = npt.NDArray[np.int64]


class ShuffledLoader(StreamLoader):
    """Whole sequences in an order drawn from a seed (see `shuffled_passes`): micro-batch k takes the k-th few of them.

    Every rank draws the order of all ranks, so that what is trained on does not depend on their number. In the public
    script of the 1.0856 and 1.0810 records it does: rank r of W owns the shards r, r + W, ..., and draws from the
    seed r. With seed 0 and one rank both read the same sequences in the same order.

    The position counts a sequence as `seq_len` ids. A pass leaves out a few ids at both ends of each shard, so that it
    ends a little before `epoch` is whole.
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
        seed: int = 0,
    ) -> None:
        """Shuffle the stream by a seed; the other arguments are those of `StreamLoader`.

        Raises:
            UserError: no shard holds a whole sequence, or see `StreamLoader`.
        """
        super().__init__(stream, position, batch_tokens, micro_batches, seq_len, rank, world_size, pin_memory)
        self.seed = seed
        if max(self.stream.shard_lengths) <= self.seq_len:
            raise UserError(
                f"no train shard holds a sequence of {self.seq_len} tokens and its next token: "
                "use longer shards or a smaller --data.train_seq_len"
            )

    @property
    def ids_per_micro_batch(self) -> int:
        """The inputs alone: the last target of a sequence is the first input of the next one in its shard."""
        return self.num_targets

    def empty_buffer(self, device: torch.device | str = "cpu", pin_memory: bool = False) -> Tensor:
        """Sequences with their next ids, shape [sequences, seq_len + 1]."""
        shape = (self.num_targets // self.seq_len, self.seq_len + 1)
        return torch.empty(shape, dtype=torch.int64, device=device, pin_memory=pin_memory)

    def split(self, buffer: Tensor) -> Batch:
        """All columns but the last, and all but the first."""
        return buffer[:, :-1], buffer[:, 1:]

    def _read(self) -> Iterator[TokenIds]:
        num_sequences = self.num_targets // self.seq_len
        for starts in self._rounds(num_sequences * self.world_size):
            mine = starts[self.rank * num_sequences :][:num_sequences]
            yield self.stream.take_each(mine, self.seq_len + 1)

    def _rounds(self, num_sequences: int) -> Iterator[Integers]:
        """Starts of so many sequences at a time, from `position` on: a micro-batch for each rank."""
        num_skipped = self.position // self.seq_len
        pending: Integers = np.empty(0, dtype=np.int64)
        for starts in shuffled_passes(self.stream.shard_lengths, self.seq_len, self.seed):
            pending = np.concatenate((pending, starts[num_skipped:]))
            num_skipped = max(num_skipped - len(starts), 0)
            num_whole = len(pending) // num_sequences * num_sequences
            yield from pending[:num_whole].reshape(-1, num_sequences)
            pending = pending[num_whole:]


def shuffled_passes(shard_lengths: Sequence[int], seq_len: int, seed: int) -> Iterator[Integers]:
    """Endless passes over a stream: for each, the positions where its sequences start, in the order of reading.

    For each pass and shard a phase is drawn from [0, seq_len), and then an order of all whole sequences from there on.
    Each sequence has `seq_len` ids and the next one. A pass draws a shard again and again, with a probability
    proportional to the sequences that it has left, and takes the last of its order. This is the loader of the 1.0856
    record (openai/parameter-golf, 04-05 and 04-09), in NumPy's PCG64.

    Args:
        shard_lengths: ids of each shard of the stream, one of them over `seq_len`.
        seq_len: ids of a sequence.
        seed: of the generator.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    while True:
        starts, counts, shard_start = [], [], 0
        for length in shard_lengths:
            phase = int(generator.integers(min(seq_len, max(length - seq_len, 1))))
            count = max(length - 1 - phase, 0) // seq_len
            order = generator.permutation(count)
            starts.append(shard_start + phase + seq_len * order[::-1])
            counts.append(count)
            shard_start += length
        shards = draw_without_replacement(np.array(counts), generator)
        in_reading_order: Integers = np.empty(len(shards), dtype=np.int64)
        in_reading_order[np.argsort(shards, kind="stable")] = np.concatenate(starts)
        yield in_reading_order


def draw_without_replacement(counts: Integers, generator: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Draw from urns until all are empty, each time with probabilities proportional to what they have left.

    One uniform number makes one draw, as in `generator.choice(len(counts), p=left / left.sum())`. Draws are made in
    blocks: first as if the urns stayed as they are at the block's start, then mended one by one where the draws before
    in the block could have made a difference.

    Args:
        counts: contents of each urn, shape [urns]; fewer than 65,536 urns.
        generator: gives the uniform numbers.

    Returns:
        The urns in the order of drawing, shape [counts.sum()].
    """
    assert len(counts) <= np.iinfo(np.uint16).max  # sixteen bits are sorted several times as fast as more
    total = int(counts.sum())
    points = generator.random(total) * np.arange(total, 0, -1)
    drawn = np.empty(total, dtype=np.uint16)
    left = counts.copy()
    done = 0
    while done < total:
        # So long that about five draws of the block have to be looked at again.
        size = 3 * isqrt((total - done) // len(counts)) + 1
        block = points[done : done + size]
        ends = np.cumsum(left)
        urns = drawn[done : done + size]
        urns[:] = np.searchsorted(ends, block, side="right")
        for index in np.flatnonzero(block >= ends[urns] - np.arange(len(block))):
            # Each draw before this one has moved the ends of its urn and of all that follow it down by one.
            while block[index] >= ends[urns[index]] - np.count_nonzero(urns[:index] <= urns[index]):
                urns[index] += 1
        left -= np.bincount(urns, minlength=len(counts))
        done += size
    return drawn
