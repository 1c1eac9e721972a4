"""The loader of shuffled sequences: the public loader's numbers, each sequence once a pass, any ranks, any resume."""

import itertools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import TrainerFn

from components.errors import UserError
from datamodules.fineweb import FineWeb
from datamodules.shards import find_shards, shard_name
from datamodules.shuffled import ShuffledLoader, draw_without_replacement, shuffled_passes
from datamodules.stream import Batch, SpanLoader, TokenStream, to_device
from tests.support import SAMPLE, SHARED, needs_sample, write_shard

GOLDEN = SHARED / "golden_late" / "loader.json"
needs_loader_golden = pytest.mark.skipif(
    not GOLDEN.is_file(), reason=f"the public loader's numbers are not at {GOLDEN}"
)
LENGTHS = [70, 9, 41, 83]
SEQ_LEN = 8


@pytest.fixture
def numbered(tmp_path: Path) -> TokenStream:
    """Ids 0, 1, 2, ... over four shards, so that an id says where it was read; one shard is hardly a sequence long."""
    ends = np.cumsum(LENGTHS)
    for index, (length, end) in enumerate(zip(LENGTHS, ends, strict=True)):
        write_shard(tmp_path / shard_name("train", index), np.arange(end - length, end))
    return TokenStream(find_shards(tmp_path, "train"), 1000)


def loader_of(stream: TokenStream, position: int = 0, rank: int = 0, world_size: int = 1, seed: int = 0) -> Any:
    """Eight micro-batches of two sequences a step."""
    return ShuffledLoader(stream, position, 16 * SEQ_LEN, 8, SEQ_LEN, rank, world_size, seed=seed)


def read(loader: ShuffledLoader, num_batches: int) -> list[list[list[int]]]:
    """Input ids of the next micro-batches."""
    with warnings.catch_warnings(action="ignore"):
        return [batch[0].tolist() for batch in itertools.islice(loader, num_batches)]


def shard_of(start: int, lengths: Sequence[int]) -> int:
    return int(np.searchsorted(np.cumsum(lengths), start, side="right"))


@needs_loader_golden
@needs_sample
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_seed_zero_reads_what_the_public_loader_reads(world_size: int) -> None:
    golden = json.loads(GOLDEN.read_text())
    stream = TokenStream(find_shards(SAMPLE / "datasets/fineweb10B_sp1024", "train"), 1024)
    seq_len = golden["seq_len"]

    starts = next(shuffled_passes(stream.shard_lengths, seq_len, seed=0))
    shard_start = 0
    for length, (count, phase), last in zip(
        stream.shard_lengths, golden["phases_and_counts"], golden["last_20_of_each_order"], strict=True
    ):
        order = [s - shard_start for s in starts.tolist() if shard_start <= s < shard_start + length][::-1]
        shard_start += length
        assert len(order) == count
        assert min(order) % seq_len == phase
        assert order[-20:] == last

    loaders = [
        iter(ShuffledLoader(stream, 0, 8 * seq_len, 4, seq_len, rank, world_size, seed=0)) for rank in range(world_size)
    ]
    rows = [row[:6].tolist() for k in range(4) for row in next(loaders[k % world_size])[0]]
    assert rows == golden["first_batch_of_8_rows_first_6_ids"]


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(any),
    seed=st.integers(0, 2**32),
    times=st.integers(1, 20),
)
def test_draws_are_those_of_choice_one_by_one(counts: list[int], seed: int, times: int) -> None:
    counts = [times * count for count in counts]
    generator = np.random.default_rng(seed)
    left, expected = np.array(counts), []
    while left.sum():
        expected.append(int(generator.choice(len(left), p=left / left.sum())))
        left[expected[-1]] -= 1
    assert draw_without_replacement(np.array(counts), np.random.default_rng(seed)).tolist() == expected


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5), seq_len=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_pass_holds_every_whole_sequence_of_its_phases_once(lengths: list[int], seq_len: int, seed: int) -> None:
    if max(lengths) <= seq_len:
        return
    passes = shuffled_passes(lengths, seq_len, seed)
    for starts in (next(passes), next(passes)):
        for index, end in enumerate(np.cumsum(lengths).tolist()):
            mine = sorted(s for s in starts.tolist() if shard_of(s, lengths) == index)
            length = lengths[index]
            if length <= seq_len:
                assert mine == []
                continue
            phase = mine[0] - (end - length)
            assert 0 <= phase < seq_len
            assert mine == list(range(mine[0], end - seq_len, seq_len))  # with room for the next id, and no more


def test_passes_and_seeds_differ() -> None:
    first, second = itertools.islice(shuffled_passes([10_000, 10_000], 8, seed=0), 2)
    other = next(shuffled_passes([10_000, 10_000], 8, seed=1))
    assert len({starts.tobytes() for starts in (first, second, other)}) == 3
    assert {tuple(np.unique(starts % 8).tolist()) for starts in (first, second, other)} != {(0,)}


def test_sequences_are_read_from_within_one_shard_with_their_next_ids(numbered: TokenStream) -> None:
    loader = loader_of(numbered)
    starts = next(shuffled_passes(LENGTHS, SEQ_LEN, seed=0)).tolist()
    for k, (inputs, targets) in enumerate(itertools.islice(loader, len(starts) // 2)):
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)
        assert inputs.tolist() == [list(range(s, s + SEQ_LEN)) for s in starts[2 * k : 2 * k + 2]]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_order_does_not_depend_on_the_world_size(numbered: TokenStream, world_size: int) -> None:
    alone = read(loader_of(numbered), 48)  # several passes
    ranks = [read(loader_of(numbered, rank=r, world_size=world_size), 48 // world_size) for r in range(world_size)]
    assert [ranks[k % world_size][k // world_size] for k in range(48)] == alone


@pytest.mark.parametrize("num_read", [1, 3, 20])
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_resuming_under_another_world_size_reads_on(numbered: TokenStream, num_read: int, world_size: int) -> None:
    alone = read(loader_of(numbered), 2 * num_read + 16)
    position = loader_of(numbered, world_size=2).position_after(num_read)
    assert position == num_read * 2 * 2 * SEQ_LEN
    ranks = [read(loader_of(numbered, position, r, world_size), 16 // world_size) for r in range(world_size)]
    assert [ranks[k % world_size][k // world_size] for k in range(16)] == alone[2 * num_read :]


def test_the_epoch_and_the_warning_of_a_second_pass(numbered: TokenStream) -> None:
    loader = loader_of(numbered)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        epochs = [(loader.epoch, len(caught)) for _ in itertools.islice(loader, 14)]
    assert epochs == [(k * 16 / 203, int(k * 16 > 203)) for k in range(1, 15)]
    assert "203 training tokens have all been read" in str(caught[0].message)


def test_shards_without_a_whole_sequence_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name("train", 0), np.arange(SEQ_LEN))
    with pytest.raises(UserError, match=rf"no train shard holds a sequence of {SEQ_LEN} tokens .*data\.train_seq_len"):
        loader_of(TokenStream(find_shards(tmp_path, "train"), 1000))


def test_an_id_outside_the_vocabulary_names_shard_and_position(tmp_path: Path) -> None:
    write_shard(tmp_path / shard_name("train", 0), np.arange(40))
    write_shard(tmp_path / shard_name("train", 1), np.array([*range(20), 77, *range(21, 40)]))
    stream = TokenStream(find_shards(tmp_path, "train"), 60)
    with pytest.raises(
        UserError, match=r"token id 77 at position 20 of .*fineweb_train_000001\.bin .*vocabulary of 60"
    ):
        read(loader_of(stream), 6)


@pytest.mark.parametrize("kind", [SpanLoader, ShuffledLoader])
def test_a_batch_crosses_to_a_device_as_one_buffer(numbered: TokenStream, kind: Any) -> None:
    batch: Batch = next(iter(kind(numbered, 0, 16 * SEQ_LEN, 8, SEQ_LEN)))
    for moved in (to_device(batch, torch.device("cpu")), to_device(batch, torch.device("meta"))):
        assert [ids.stride() for ids in moved] == [ids.stride() for ids in batch]
        assert [ids.shape for ids in moved] == [ids.shape for ids in batch]
        assert moved[1].storage_offset() - moved[0].storage_offset() == 1
    inputs, targets = to_device(batch, torch.device("cpu"))
    assert torch.equal(inputs, batch[0])
    assert torch.equal(targets, batch[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to copy to")
@pytest.mark.parametrize("kind", [SpanLoader, ShuffledLoader])
def test_a_pinned_batch_arrives_on_a_gpu(numbered: TokenStream, kind: Any) -> None:
    batch: Batch = next(iter(kind(numbered, 0, 16 * SEQ_LEN, 8, SEQ_LEN, pin_memory=True)))
    assert all(ids.is_pinned() for ids in batch)
    moved = to_device(batch, torch.device("cuda"))
    assert all(torch.equal(there.cpu(), here) for there, here in zip(moved, batch, strict=True))
    assert [ids.stride() for ids in moved] == [ids.stride() for ids in batch]


def set_up(folder: Path, world_size: int = 1, rank: int = 0, **settings: Any) -> FineWeb:
    """A DataModule of two micro-batches of two sequences of 16, ready to fit."""
    data = FineWeb(
        path=str(folder),
        **{
            "tokenizer_path": str(folder / "tokenizer.model"),
            "train_batch_tokens": 64,
            "train_seq_len": 16,
            "train_micro_batches": 2,
            "order": "shuffled",
            **settings,
        },
    )
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        global_step=0,
        accumulate_grad_batches=1,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        strategy=Mock(root_device=torch.device("cpu")),
    )
    data.setup(TrainerFn.FITTING)
    return data


def test_the_datamodule_reads_shuffled_by_its_seed_and_says_so(data_folder: Path) -> None:
    data = set_up(data_folder, shuffle_seed=7)
    stream = TokenStream(find_shards(data_folder, "train"), 1024)
    expected = read(ShuffledLoader(stream, 0, 64, 2, 16, seed=7), 4)
    assert read(data.train_dataloader(), 4) == expected  # type: ignore[arg-type]
    assert data.epoch == 4 * 32 / len(stream)
    data.trainer.global_step = 2  # type: ignore[union-attr]
    facts = data.summary()
    assert (facts["train_order"], facts["train_shuffle_seed"], facts["train_positions"]) == ("shuffled", 7, [0, 128])
    assert "train_shuffle_seed" not in set_up(data_folder, order="in_order").summary()


def test_made_up_batches_have_the_form_of_real_ones(data_folder: Path) -> None:
    for order in ("in_order", "shuffled"):
        data = set_up(data_folder, order=order)
        for real, made_up in zip(
            next(iter(data.train_dataloader())), data.example_batch(torch.device("cpu")), strict=True
        ):
            assert (real.shape, real.stride(), real.dtype) == (made_up.shape, made_up.stride(), made_up.dtype)
            assert real.storage_offset() == made_up.storage_offset()


def test_a_checkpoint_goes_on_under_another_number_of_ranks(data_folder: Path) -> None:
    first = set_up(data_folder)
    alone = read(first.train_dataloader(), 14)  # type: ignore[arg-type]
    first.trainer.global_step = 5  # type: ignore[union-attr]
    state = first.state_dict()
    assert state == {"position": 5 * 64, "step": 5}
    read_on = []
    for rank in range(2):
        data = set_up(data_folder, world_size=2, rank=rank)
        data.load_state_dict(state)
        read_on.append(read(data.train_dataloader(), 2))  # type: ignore[arg-type]
    assert [batch for pair in zip(*read_on, strict=True) for batch in pair] == alone[10:]


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.shuffle_seed is -1; set it to at least 0"):
        FineWeb(shuffle_seed=-1)


@needs_sample
@pytest.mark.parametrize(
    ("shards", "tokenizer", "message"),
    [
        (
            8192,
            1024,
            r"token id \d+ at position \d+ of .*fineweb_val_000000\.bin is outside the vocabulary of 1024: give",
        ),
        (1024, 8192, r"validation shards in .*sp1024 use no id above 1023 of a vocabulary of 8192"),
    ],
)
def test_shards_of_another_vocabulary_are_refused(shards: int, tokenizer: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_up(
            SAMPLE / f"datasets/fineweb10B_sp{shards}",
            tokenizer_path=str(SAMPLE / f"tokenizers/fineweb_{tokenizer}_bpe.model"),
        )
