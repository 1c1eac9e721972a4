"""The training stream in random order: every sequence of every shard once per pass."""

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
    """Whole sequences in seeded random order (see `shuffled_passes`): micro-batch k takes the k-th group.

    Every rank draws the order for all ranks, so the training data does not depend on their number. In the public
    script of the 1.0856 and 1.0810 records, it does: rank r of W owns shards r, r + W, ..., and uses seed r. With
    seed 0 and one rank, both read the same sequences in the same order.

    The position counts a sequence as `seq_len` ids. A pass skips a few ids at both ends of each shard, so it ends
    slightly before `epoch` reaches a whole number.
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
        """Shuffle the stream with a seed; see `StreamLoader` for the other arguments.

        Raises:
            UserError: no shard contains a whole sequence; see also `StreamLoader`.
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
        """The inputs only: a sequence's last target is the first input of the next one in its shard."""
        return self.num_targets

    def empty_buffer(self, device: torch.device | str = "cpu", pin_memory: bool = False) -> Tensor:
        """An empty buffer for sequences and their next ids, shape [sequences, seq_len + 1]."""
        shape = (self.num_targets // self.seq_len, self.seq_len + 1)
        return torch.empty(shape, dtype=torch.int64, device=device, pin_memory=pin_memory)

    def split(self, buffer: Tensor) -> Batch:
        """All but the last column, and all but the first."""
        return buffer[:, :-1], buffer[:, 1:]

    def _read(self) -> Iterator[TokenIds]:
        num_sequences = self.num_targets // self.seq_len
        for starts in self._rounds(num_sequences * self.world_size):
            mine = starts[self.rank * num_sequences :][:num_sequences]
            yield self.stream.take_each(mine, self.seq_len + 1)

    def _rounds(self, num_sequences: int) -> Iterator[Integers]:
        """Yield `num_sequences` starts at a time from `position` on: one micro-batch per rank."""
        num_skipped = self.position // self.seq_len
        pending: Integers = np.empty(0, dtype=np.int64)
        for starts in shuffled_passes(self.stream.shard_lengths, self.seq_len, self.seed):
            pending = np.concatenate((pending, starts[num_skipped:]))
            num_skipped = max(num_skipped - len(starts), 0)
            num_whole = len(pending) // num_sequences * num_sequences
            yield from pending[:num_whole].reshape(-1, num_sequences)
            pending = pending[num_whole:]


def shuffled_passes(shard_lengths: Sequence[int], seq_len: int, seed: int) -> Iterator[Integers]:
    """Yield endless passes over a stream, each as its sequences' start positions in reading order.

    For each pass and shard, a phase is drawn from [0, seq_len), then a permutation of all whole sequences from there.
    Each sequence has `seq_len` ids plus the next one. A pass repeatedly draws a shard, with probability proportional
    to its remaining sequences, and takes the last in its permutation. This is the 1.0856 record's loader
    (openai/parameter-golf, 04-05 and 04-09), using NumPy's PCG64.

    Args:
        shard_lengths: number of ids in each shard; at least one exceeds `seq_len`.
        seq_len: ids per sequence.
        seed: the generator's seed.
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
    """Draw from urns until all are empty, with probabilities proportional to their remaining contents.

    Each draw uses one uniform number, as in `generator.choice(len(counts), p=left / left.sum())`. Draws are made in
    blocks. Each block is first drawn as if the urns did not change. Draws that earlier ones in the block could have
    affected are then corrected one by one.

    Args:
        counts: contents of each urn, shape [urns]; fewer than 65,536 urns.
        generator: source of the uniform numbers.

    Returns:
        The urns in draw order, shape [counts.sum()].
    """
    assert len(counts) <= np.iinfo(np.uint16).max  # 16 bits sort several times faster than wider types
    total = int(counts.sum())
    points = generator.random(total) * np.arange(total, 0, -1)
    drawn = np.empty(total, dtype=np.uint16)
    left = counts.copy()
    done = 0
    while done < total:
        # Sized so that about five draws per block have to be rechecked.
        size = 3 * isqrt((total - done) // len(counts)) + 1
        block = points[done : done + size]
        ends = np.cumsum(left)
        urns = drawn[done : done + size]
        urns[:] = np.searchsorted(ends, block, side="right")
        for index in np.flatnonzero(block >= ends[urns] - np.arange(len(block))):
            # Each earlier draw moved the ends of its urn and of all later urns down by one.
            while block[index] >= ends[urns[index]] - np.count_nonzero(urns[:index] <= urns[index]):
                urns[index] += 1
        left -= np.bincount(urns, minlength=len(counts))
        done += size
    return drawn
