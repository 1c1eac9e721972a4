import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.errors import UserError
from datamodules.shards import shard_name, write_shard
from datamodules.stream import Batch, SpanLoader, TokenStream, read_ahead

ROOT = Path(__file__).parents[2]


def stream_of(folder: Path, *shards: list[int], vocab_size: int = 1000) -> TokenStream:
    paths = [folder / shard_name("train", index) for index in range(len(shards))]
    for path, ids in zip(paths, shards, strict=True):
        write_shard(path, np.array(ids, dtype=np.uint16))
    return TokenStream(paths, vocab_size)


@pytest.fixture
def counting(tmp_path: Path) -> TokenStream:
    """Ids 0..19 over three shards of 7, 1 and 12."""
    return stream_of(tmp_path, list(range(7)), [7], list(range(8, 20)))


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "token stream reader"]


def batches_of(loader: SpanLoader, count: int) -> list[list[list[list[int]]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [[tensor.tolist() for tensor in batch] for batch, _ in zip(loader, range(count), strict=False)]


def test_take_crosses_shards_and_wraps(counting: TokenStream) -> None:
    assert len(counting) == 20
    assert counting.take(2, 3).tolist() == [2, 3, 4]
    assert counting.take(5, 5).tolist() == [5, 6, 7, 8, 9]
    assert counting.take(18, 4).tolist() == [18, 19, 0, 1]
    assert counting.take(47, 2).tolist() == [7, 8]
    assert counting.take(19, 42).tolist() == [19, *range(20), *range(20), 0]
    assert counting.take(5, 5).dtype == np.uint16


@given(
    position=st.integers(0, 200), count=st.integers(1, 90), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4)
)
def test_take_equals_indexing_modulo_the_length(
    tmp_path_factory: pytest.TempPathFactory, position: int, count: int, sizes: list[int]
) -> None:
    ends = np.cumsum(sizes)
    shards = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    stream = stream_of(tmp_path_factory.mktemp("shards"), *shards)
    assert stream.take(position, count).tolist() == [(position + i) % ends[-1] for i in range(count)]


def test_take_inside_a_shard_does_not_copy(counting: TokenStream) -> None:
    first, second = counting.take(8, 6), counting.take(10, 2)
    assert np.shares_memory(first, second)


def test_paths_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    stream_of(tmp_path, [1], [2], [3])
    paths = [tmp_path / shard_name("train", index) for index in (2, 0, 1)]
    assert TokenStream(paths, vocab_size=10).take(0, 3).tolist() == [1, 2, 3]


def test_an_id_outside_the_vocabulary_names_shard_and_position(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [1, 2, 3], [4, 9, 10, 5], vocab_size=10)
    assert stream.take(0, 5).tolist() == [1, 2, 3, 4, 9]
    with pytest.raises(UserError, match=r"token id 10 at position 2 of .*fineweb_train_000001\.bin .* of 10"):
        stream.take(0, 7)


def test_literal_batches(counting: TokenStream) -> None:
    loader = SpanLoader(counting, position=0, batch_tokens=8, micro_batches=2, seq_len=2)
    assert batches_of(loader, 3) == [
        [[[0, 1], [2, 3]], [[1, 2], [3, 4]]],
        [[[5, 6], [7, 8]], [[6, 7], [8, 9]]],
        [[[10, 11], [12, 13]], [[11, 12], [13, 14]]],
    ]
    input_ids, target_ids = next(iter(loader))
    assert input_ids.dtype == target_ids.dtype == torch.int64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to pin memory for")
def test_batches_are_pinned_where_asked(counting: TokenStream) -> None:
    input_ids, target_ids = next(iter(SpanLoader(counting, 0, 8, 2, seq_len=2, pin_memory=True)))
    assert input_ids.is_pinned()
    assert target_ids.is_pinned()


def test_literal_batches_of_two_ranks(counting: TokenStream) -> None:
    ranks = [SpanLoader(counting, 0, 8, 2, seq_len=4, rank=rank, world_size=2) for rank in (0, 1)]
    assert batches_of(ranks[0], 3) == [
        [[[0, 1, 2, 3]], [[1, 2, 3, 4]]],
        [[[10, 11, 12, 13]], [[11, 12, 13, 14]]],
        [[[0, 1, 2, 3]], [[1, 2, 3, 4]]],
    ]
    assert batches_of(ranks[1], 2) == [
        [[[5, 6, 7, 8]], [[6, 7, 8, 9]]],
        [[[15, 16, 17, 18]], [[16, 17, 18, 19]]],
    ]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_stream_does_not_depend_on_the_world_size(counting: TokenStream, world_size: int) -> None:
    alone = batches_of(SpanLoader(counting, 3, 24, 8, seq_len=3), 16)
    ranks = [
        batches_of(SpanLoader(counting, 3, 24, 8, seq_len=3, rank=rank, world_size=world_size), 16 // world_size)
        for rank in range(world_size)
    ]
    assert [ranks[k % world_size][k // world_size] for k in range(16)] == alone


def test_resuming_under_another_world_size_continues_the_stream(counting: TokenStream) -> None:
    alone = batches_of(SpanLoader(counting, 0, 24, 8, seq_len=3), 16)
    position = SpanLoader(counting, 0, 24, 8, seq_len=3, world_size=4).position_after(2)
    assert position == 8 * 4
    resumed = [SpanLoader(counting, position, 24, 8, seq_len=3, rank=rank, world_size=2) for rank in (0, 1)]
    first, second = (batches_of(loader, 4) for loader in resumed)
    assert [batch for pair in zip(first, second, strict=True) for batch in pair] == alone[8:]


def test_wrapping_is_said_once_and_the_epoch_is_counted(counting: TokenStream) -> None:
    loader = SpanLoader(counting, 0, 8, 2, seq_len=2)
    epochs = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in zip(range(9), loader, strict=False):
            epochs.append((loader.epoch, len(caught)))
    assert epochs == [(0.25, 0), (0.5, 0), (0.75, 0), (1.0, 0), *((i / 4, 1) for i in range(5, 10))]
    assert "20 training tokens have all been read" in str(caught[0].message)


def test_only_rank_zero_says_that_the_data_wrapped(counting: TokenStream) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in zip(range(9), SpanLoader(counting, 0, 8, 2, 2, rank=1, world_size=2), strict=False):
            pass


@pytest.mark.parametrize(
    ("batch_tokens", "micro_batches", "seq_len", "world_size", "message"),
    [
        (24, 8, 3, 3, "a world of 3 ranks cannot share the 8 micro-batches"),
        (24, 8, 3, 16, "a world of 16 ranks cannot share the 8 micro-batches"),
        (25, 8, 3, 1, "train_batch_tokens 25 is not a multiple .* multiple of 24"),
        (24, 8, 2, 1, "train_batch_tokens 24 is not a multiple .* multiple of 16"),
        (0, 8, 3, 1, "train_batch_tokens 0 is not a multiple"),
    ],
)
def test_settings_that_do_not_divide(
    counting: TokenStream, batch_tokens: int, micro_batches: int, seq_len: int, world_size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SpanLoader(counting, 0, batch_tokens, micro_batches, seq_len, world_size=world_size)


def test_an_error_in_the_reader_reaches_the_consumer(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, [1, 2, 3, 4, 5, 6, 7, 8, 1000])
    batches = iter(SpanLoader(stream, 0, 2, 1, seq_len=2))
    assert [next(batches)[0].tolist() for _ in range(2)] == [[[1, 2]], [[4, 5]]]
    with pytest.raises(UserError, match="token id 1000"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert not reader_threads()


def test_closing_and_dropping_the_iterator_end_the_thread(counting: TokenStream) -> None:
    loader = SpanLoader(counting, 0, 2, 1, seq_len=2)
    batches = loader.__iter__()
    next(batches)
    assert len(reader_threads()) == 1
    batches.close()
    assert not reader_threads()
    batches = loader.__iter__()
    next(batches)
    del batches
    gc.collect()
    assert not reader_threads()


def test_the_reader_stays_a_few_batches_ahead() -> None:
    started = []
    released = threading.Semaphore(0)

    def items() -> Iterator[Batch]:
        for index in range(100):
            started.append(index)
            released.release()
            yield (torch.tensor(index),)

    batches = read_ahead(items(), depth=2)
    assert next(batches)[0].item() == 0
    for _ in range(4):  # handed out: 1; waiting: 2; in the reader's hands: 1
        assert released.acquire(timeout=10)
    assert not released.acquire(timeout=0.3)
    assert started == [0, 1, 2, 3]
    batches.close()


ENDLESS = """
import sys, numpy as np
from pathlib import Path
from datamodules.shards import write_shard
from datamodules.stream import SpanLoader, TokenStream
path = Path(sys.argv[1])
write_shard(path, np.zeros(100_000, np.uint16))
batches = iter(SpanLoader(TokenStream([path], 10), 0, 65536, 8, 1024))
next(batches)
"""


def test_the_process_ends_while_the_iterator_is_open(tmp_path: Path) -> None:
    for _ in range(3):
        subprocess.run([sys.executable, "-c", ENDLESS, str(tmp_path / "s.bin")], cwd=ROOT, check=True, timeout=60)


def test_interrupting_a_waiting_consumer_ends_the_process(tmp_path: Path) -> None:
    waiting = """
import signal, threading, time
from datamodules import stream
def items():
    threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
    time.sleep(1)
    yield from ()
try:
    next(stream.read_ahead(items(), 1))
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", waiting]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=60)
    assert result.stdout == "interrupted\n"
