"""Windows that score every target once, and sums that do not depend on who scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.byte_counts import ByteTable
from components.errors import UserError
from components.scoring import BitsPerByte, Chunk, Score, ScoringConfig, WindowLoader, Windows
from tests.support import bytes_by_id, random_ids, tiny_network

CPU = torch.device("cpu")


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, int]:
    num_targets, seq_len = draw(st.integers(1, 300)), draw(st.integers(1, 64))
    return num_targets, seq_len, draw(st.integers(1, seq_len))


def loader_of(
    stream: tuple[int, int, int], windows_per_batch: int = 4, rank: int = 0, world_size: int = 1
) -> WindowLoader:
    """Windows of ids that are their own positions, a byte each."""
    num_targets, seq_len, stride = stream
    return WindowLoader(
        torch.arange(num_targets + 1),
        bytes_by_id(torch.ones(num_targets + 1, dtype=torch.int64)),
        seq_len=seq_len,
        stride=stride,
        windows_per_batch=windows_per_batch,
        device=CPU,
        rank=rank,
        world_size=world_size,
    )


@given(streams(), st.integers(1, 9), st.integers(1, 4), st.integers(0, 320))
def test_each_target_is_scored_exactly_once_over_all_ranks_and_chunks(
    stream: tuple[int, int, int], windows_per_batch: int, world_size: int, chunk_targets: int
) -> None:
    num_targets = stream[0]
    times_scored = torch.zeros(num_targets + 1, dtype=torch.int64)
    num_windows, shapes = 0, set()
    for rank in range(world_size):
        loader = loader_of(stream, windows_per_batch, rank, world_size)
        for chunk in loader.chunks(chunk_targets):
            batches = list(loader.batches(chunk))
            assert len(batches) == loader.num_batches(chunk)
            for batch in batches:
                shapes.add((batch.input_ids.shape, batch.target_ids.shape))
                # Ids are their own positions: a scored target must be the one after its input.
                inputs = batch.input_ids[:, -batch.target_ids.size(1) :]
                assert torch.equal(batch.target_ids[batch.scored], inputs[batch.scored] + 1)
                times_scored += torch.bincount(batch.target_ids[batch.scored], minlength=num_targets + 1)
                num_windows += int(batch.scored.any(1).sum())
                assert torch.equal(batch.target_bytes, batch.scored.long())
    assert times_scored.tolist() == [0] + [1] * num_targets
    assert num_windows == len(Windows(*stream))
    # Each shape is another compiled graph.
    assert len(shapes) <= 2


@given(streams(), st.integers(1, 320))
def test_every_window_is_in_exactly_one_chunk_that_of_its_first_scored_target(
    stream: tuple[int, int, int], chunk_targets: int
) -> None:
    windows = Windows(*stream)
    _, first_scored, _ = windows.spans(torch.arange(len(windows)))
    chunks = loader_of(stream).chunks(chunk_targets)
    in_order = [window for chunk in chunks for window in range(chunk.first_window, chunk.end_window)]
    assert in_order == list(range(len(windows)))
    for chunk in chunks:
        own = first_scored[chunk.first_window : chunk.end_window]
        assert ((chunk.first_target <= own) & (own < chunk.end_target)).all()
    targets = [target for chunk in chunks for target in range(chunk.first_target, chunk.end_target)]
    assert targets == list(range(stream[0]))
    assert {chunk.end_target - chunk.first_target for chunk in chunks[:-1]} <= {chunk_targets}


@given(streams())
def test_the_batches_of_a_loader_are_those_of_one_whole_chunk(stream: tuple[int, int, int]) -> None:
    loader = loader_of(stream)
    assert loader.chunks() == [Chunk(0, len(loader.windows), 0, stream[0])]
    assert sum(int(batch.scored.sum()) for batch in loader) == stream[0]
    assert len(list(loader)) == len(loader)


def test_chunks_of_a_hand_worked_stream() -> None:
    # The windows begin to score at 0, 4, 6 and 8; the text is cut at 3, 6 and 9, and no window begins at 9.
    chunks = loader_of((10, 4, 2)).chunks(3)
    assert chunks == [Chunk(0, 1, 0, 3), Chunk(1, 2, 3, 6), Chunk(2, 4, 6, 9), Chunk(4, 4, 9, 10)]


def test_windows_of_a_hand_worked_stream() -> None:
    # 10 targets, windows of 4, stride 2: [0,4) scores all, then [2,6) scores 4-5, [4,8) 6-7, [6,10) 8-9.
    windows = Windows(10, 4, 2)
    starts, first_scored, ends = windows.spans(torch.arange(len(windows)))
    assert starts.tolist() == [0, 2, 4, 6]
    assert first_scored.tolist() == [0, 4, 6, 8]
    assert ends.tolist() == [4, 6, 8, 10]


def test_splitting_over_ranks_changes_nothing_beyond_rounding() -> None:
    network, ids = tiny_network(), random_ids(700)
    table = ByteTable(*torch.randint(0, 3, (3, 1024)))

    def metric(rank: int, world_size: int) -> BitsPerByte:
        loader = WindowLoader(
            ids, table, seq_len=32, stride=8, windows_per_batch=4, device=CPU, rank=rank, world_size=world_size
        )
        sums = BitsPerByte()
        with torch.no_grad():
            for batch in loader:
                sums.update(network(batch.input_ids, batch.target_ids), batch)
        return sums

    whole, parts = metric(0, 1).compute(), [metric(rank, 3).compute() for rank in range(3)]
    assert whole.nats == pytest.approx(sum(part.nats for part in parts), rel=1e-7)
    assert whole.num_bytes == sum(part.num_bytes for part in parts) == int(table.target_bytes(ids[:-1], ids[1:]).sum())
    assert whole.num_tokens == sum(part.num_tokens for part in parts) == 699


def test_sums_are_wide_enough_for_a_validation_split() -> None:
    metric = BitsPerByte()
    assert metric.nats.dtype == torch.float64
    assert metric.num_bytes.dtype == metric.num_tokens.dtype == torch.int64


def test_the_loss_and_the_bits_per_byte_of_a_score() -> None:
    # 3 ln 2 nats over 6 targets and 12 bytes: 3 bits in all.
    score = Score(nats=3 * math.log(2), num_bytes=12, num_tokens=6, num_windows=1)
    assert score.loss == pytest.approx(math.log(2) / 2)
    assert score.bits_per_byte == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stride": 0}, "scoring.stride is 0; set it from 1 to scoring.seq_len"),
        ({"stride": 4096}, "scoring.stride is 4096; set it from 1 to scoring.seq_len"),
        ({"seq_len": 0}, "scoring.seq_len is 0; set it to at least 1."),
        ({"windows_per_batch": 0}, "scoring.windows_per_batch is 0; set it to at least 1."),
        ({"max_tokens": 1}, "scoring.max_tokens is 1; set it to 0 for all or to at least 2"),
        ({"max_tokens": -1}, "scoring.max_tokens is -1; set it to 0 for all or to at least 2"),
        (
            {"val_stride": 4096},
            r"scoring.val_stride is 4096; set it from 0 to scoring.seq_len \(2048\), 0 for whole wind",
        ),
    ],
)
def test_windows_that_would_skip_targets_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ScoringConfig(**settings)
