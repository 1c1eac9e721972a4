"""The scoring loop: the golden scores, and the order of scoring and of what follows a chunk."""

import json
import math

import pytest
import sentencepiece
import torch
from torch import nn

from components.byte_counts import token_byte_table
from components.errors import UserError
from components.public_artifact import read_public_artifact
from components.quantization import load_state
from components.scorer import Scorer, ScoringPass, SlidingWindows
from components.scoring import Chunk, Score, WindowLoader
from datamodules.shards import find_shards, open_shard
from tests.support import GOLDEN, SAMPLE, bytes_by_id, golden_network, needs_golden, needs_sample, random_ids

CPU = torch.device("cpu")


@needs_golden
@needs_sample
@pytest.mark.parametrize("case", range(9))
def test_golden_scores_of_the_float_weights_and_of_the_artifact(case: int) -> None:
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
    result = SlidingWindows().score(network, loader)
    assert result.bits_per_byte == pytest.approx(expected["val_bpb"], abs=1e-4)
    assert result.loss == pytest.approx(expected["val_loss"], abs=1e-4)
    assert result.num_tokens == expected["tokens"] - 1
    if "windows" in expected:
        assert result.num_windows == expected["windows"]


class Guess(nn.Module):
    """Guesses among 1,024 pieces."""

    def forward(self, input_ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        return torch.full(target_ids.shape, math.log(1024))


def two_byte_windows() -> WindowLoader:
    return WindowLoader(
        random_ids(50), bytes_by_id(torch.full((1024,), 2)), seq_len=8, stride=3, windows_per_batch=4, device=CPU
    )


def test_bits_per_byte_of_a_model_that_guesses() -> None:
    # ln 1024 nats a target are 10 bits; at two bytes a target, 5 bits a byte.
    result = SlidingWindows().score(Guess(), two_byte_windows())
    assert result.bits_per_byte == pytest.approx(5.0)
    assert result.loss == pytest.approx(math.log(1024))


@pytest.mark.parametrize("show_progress", [True, False])
def test_a_pass_scores_its_windows_and_shows_its_title_where_it_should(
    show_progress: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = two_byte_windows()
    result = ScoringPass(windows, SlidingWindows(), "scoring the artifact").run(Guess(), show_progress)
    assert result == SlidingWindows().score(Guess(), windows)
    assert ("scoring the artifact" in capsys.readouterr().err) == show_progress


# Chunks

NUM_TARGETS, SEQ_LEN, STRIDE = 100, 16, 6


class Watched(nn.Module):
    """Records the targets that it is asked for, and gives each nats of its own that add up exactly."""

    def __init__(self, events: list[torch.Tensor | Chunk]) -> None:
        super().__init__()
        self.events = events

    def forward(self, input_ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.events.append(target_ids)
        return (target_ids % 7) / 8


class BetweenChunks(Scorer):
    """Records when a chunk has been scored."""

    def __init__(self, chunk_tokens: int, events: list[torch.Tensor | Chunk]) -> None:
        self.chunk_tokens, self.events = chunk_tokens, events

    def after_chunk(self, network: nn.Module, windows: WindowLoader, chunk: Chunk, is_last: bool) -> None:
        assert isinstance(network, Watched)
        self.events.append(chunk)


def score_watched(chunk_tokens: int, rank: int, world_size: int) -> tuple[Score, list[torch.Tensor | Chunk]]:
    """The score of one rank, and what happened in what order; ids are their own positions."""
    windows = WindowLoader(
        torch.arange(NUM_TARGETS + 1),
        bytes_by_id(torch.ones(NUM_TARGETS + 1, dtype=torch.int64)),
        seq_len=SEQ_LEN,
        stride=STRIDE,
        windows_per_batch=2,
        device=CPU,
        rank=rank,
        world_size=world_size,
    )
    events: list[torch.Tensor | Chunk] = []
    return BetweenChunks(chunk_tokens, events).score(Watched(events), windows), events


def targets_by_chunk(events: list[torch.Tensor | Chunk]) -> list[tuple[Chunk, set[int]]]:
    """Each chunk, with the targets that the network had been asked for when the chunk was declared scored."""
    chunks, asked = [], set()
    for event in events:
        if isinstance(event, Chunk):
            chunks.append((event, set(asked)))
        else:
            asked |= {id - 1 for id in event.flatten().tolist()}
    assert not events or isinstance(events[-1], Chunk)
    return chunks


@pytest.mark.parametrize("world_size", [1, 2])
def test_all_of_a_chunk_is_scored_before_what_follows_it(world_size: int) -> None:
    ranks = [targets_by_chunk(score_watched(30, rank, world_size)[1]) for rank in range(world_size)]
    boundaries = [[(chunk.first_target, chunk.end_target) for chunk, _ in chunks] for chunks in ranks]
    assert boundaries == [[(0, 30), (30, 60), (60, 90), (90, 100)]] * world_size
    for chunk_on_each_rank in zip(*ranks, strict=True):
        [chunk] = {chunk for chunk, _ in chunk_on_each_rank}  # ranks agree on the windows too
        asked = set().union(*(targets for _, targets in chunk_on_each_rank))
        assert asked >= set(range(chunk.end_target))
        # No window that begins to score in the next chunk has been looked at.
        assert max(asked) < chunk.end_target + STRIDE - 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # a chunk may leave a rank without a batch
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("chunk_tokens", [1, 30, 100, 1000])
def test_chunks_do_not_change_the_score(chunk_tokens: int, world_size: int) -> None:
    scores = [score_watched(chunk_tokens, rank, world_size)[0] for rank in range(world_size)]
    assert sum(score.nats for score in scores) == sum((target % 7) / 8 for target in range(1, NUM_TARGETS + 1))
    assert sum(score.num_tokens for score in scores) == NUM_TARGETS
    assert sum(score.num_windows for score in scores) == 1 + 14  # after the first, 84 targets in windows of 6


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_an_error(nats: float) -> None:
    class Broken(Guess):
        def forward(self, input_ids: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
            result = super().forward(input_ids, target_ids)
            result[-1, -1] = nats
            return result

    with pytest.raises(UserError, match=f"^The network's score is {nats}, because its weights or settings are damaged"):
        SlidingWindows().score(Broken(), two_byte_windows())


def test_a_rank_without_a_batch_has_no_part_in_the_sum_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    # One window is one batch, which is rank 0's.
    windows = WindowLoader(
        random_ids(9),
        bytes_by_id(torch.full((1024,), 2)),
        seq_len=8,
        stride=8,
        windows_per_batch=4,
        device=CPU,
        rank=1,
        world_size=2,
    )
    assert SlidingWindows().score(Guess(), windows) == Score(nats=0, num_bytes=0, num_tokens=0, num_windows=0)
    assert list(recwarn) == []


def test_without_chunks_of_its_own_a_scorer_has_the_whole_text_for_one() -> None:
    [(chunk, asked)] = targets_by_chunk(score_watched(0, 0, 1)[1])
    assert (chunk.first_target, chunk.end_target) == (0, NUM_TARGETS)
    assert asked == set(range(NUM_TARGETS))
