"""Windows that score every target once, and sums that do not depend on who scores."""

import json
import math

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.byte_counts import ByteTable, token_byte_table
from components.errors import UserError
from components.scoring import BitsPerByte, ScoringConfig, WindowLoader, Windows, score
from datamodules.shards import find_shards, open_shard
from tests.support import (
    GOLDEN,
    SAMPLE,
    bytes_by_id,
    golden_network,
    needs_golden,
    needs_sample,
    random_ids,
    tiny_network,
)

CPU = torch.device("cpu")


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, int]:
    num_targets, seq_len = draw(st.integers(1, 300)), draw(st.integers(1, 64))
    return num_targets, seq_len, draw(st.integers(1, seq_len))


@given(streams(), st.integers(1, 9), st.integers(1, 4))
def test_each_target_is_scored_exactly_once_over_all_ranks(
    stream: tuple[int, int, int], windows_per_batch: int, world_size: int
) -> None:
    num_targets, seq_len, stride = stream
    ids = torch.arange(num_targets + 1)
    times_scored = torch.zeros(num_targets + 1, dtype=torch.int64)
    num_windows, shapes = 0, set()
    for rank in range(world_size):
        loader = WindowLoader(
            ids,
            bytes_by_id(torch.ones(num_targets + 1, dtype=torch.int64)),
            seq_len=seq_len,
            stride=stride,
            windows_per_batch=windows_per_batch,
            device=CPU,
            rank=rank,
            world_size=world_size,
        )
        batches = list(loader)
        assert len(batches) == len(loader) >= 1  # also where a rank is left without a window
        for batch in batches:
            shapes.add((batch.input_ids.shape, batch.target_ids.shape))
            # Ids that are their own positions: a scored target must be the one after its input.
            inputs = batch.input_ids[:, -batch.target_ids.size(1) :]
            assert torch.equal(batch.target_ids[batch.scored], inputs[batch.scored] + 1)
            times_scored += torch.bincount(batch.target_ids[batch.scored], minlength=num_targets + 1)
            num_windows += int(batch.scored.any(1).sum())
            assert torch.equal(batch.target_bytes, batch.scored.long())
    assert times_scored.tolist() == [0] + [1] * num_targets
    assert num_windows == len(Windows(num_targets, seq_len, stride))
    # Each shape is another compiled graph.
    assert len(shapes) <= 2


def test_windows_of_a_hand_worked_stream() -> None:
    # 10 targets, windows of 4, stride 2: [0,4) scores all, then [2,6) scores 4-5, [4,8) 6-7, [6,10) 8-9.
    windows = Windows(10, 4, 2)
    starts, first_scored, ends = windows.spans(torch.arange(len(windows)))
    assert starts.tolist() == [0, 2, 4, 6]
    assert first_scored.tolist() == [0, 4, 6, 8]
    assert ends.tolist() == [4, 6, 8, 10]


@needs_golden
@needs_sample
@pytest.mark.parametrize("case", range(9))
def test_golden_scores_of_the_float_weights_and_of_the_artifact(case: int) -> None:
    from components.public_artifact import read_public_artifact
    from components.quantization import load_state

    golden = json.loads((GOLDEN / "eval.json").read_text())
    cases = [*golden["roundtrip"], golden["float_weights"], golden["float_weights_chunked"]]
    expected = cases[case]
    network = golden_network("trained.safetensors")
    if case < len(golden["roundtrip"]):
        network.load_state_dict(load_state(read_public_artifact(GOLDEN / "artifact.int5int6.ptz")))
    [shard] = find_shards(SAMPLE / "datasets" / "fineweb10B_sp1024", "val")
    ids = torch.from_numpy(open_shard(shard)[: expected["tokens"]].astype("int64"))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE / "tokenizers" / "fineweb_1024_bpe.model"))
    loader = WindowLoader(
        ids,
        token_byte_table(tokenizer),
        seq_len=expected["seq_len"],
        stride=expected.get("stride", expected["seq_len"]),
        windows_per_batch=16,
        device=CPU,
    )
    result = score(network, loader)
    assert result.bits_per_byte == pytest.approx(expected["val_bpb"], abs=1e-4)
    assert result.loss == pytest.approx(expected["val_loss"], abs=1e-4)
    assert result.num_tokens == expected["tokens"] - 1
    if "windows" in expected:
        assert result.num_windows == expected["windows"]


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


def test_bits_per_byte_of_a_model_that_guesses() -> None:
    # ln 1024 nats a target are 10 bits; at two bytes a target, 5 bits a byte.
    loader = WindowLoader(
        random_ids(50),
        bytes_by_id(torch.full((1024,), 2)),
        seq_len=8,
        stride=3,
        windows_per_batch=4,
        device=CPU,
    )
    result = score(lambda ids, targets: torch.full(targets.shape, math.log(1024)), loader)  # type: ignore[arg-type]
    assert result.bits_per_byte == pytest.approx(5.0)
    assert result.loss == pytest.approx(math.log(1024))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stride": 0}, "scoring.stride is 0; set it from 1 to scoring.seq_len"),
        ({"stride": 4096}, "scoring.stride is 4096; set it from 1 to scoring.seq_len"),
        ({"seq_len": 0}, "scoring.seq_len is 0; set it to at least 1."),
        ({"windows_per_batch": 0}, "scoring.windows_per_batch is 0; set it to at least 1."),
        ({"max_tokens": 1}, "scoring.max_tokens is 1; set it to 0 for all or to at least 2"),
        ({"fit_stride": 4096}, "scoring.fit_stride is 4096"),
    ],
)
def test_windows_that_would_skip_targets_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ScoringConfig(**settings)
