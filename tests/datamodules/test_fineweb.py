"""The DataModule: accumulation, the stream's position, and which ids are scored."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from components.errors import UserError
from components.scorer import Scorer
from components.scoring import ScoringConfig, WindowLoader
from datamodules.fineweb import FineWeb
from tests.support import write_shard

SPAN = 33  # ids of a micro-batch of 32 targets
NUM_IDS = 1000


@pytest.fixture
def numbered(data_folder: Path) -> Path:
    """A folder in which train id i is i, so that a batch says where it was read."""
    write_shard(data_folder / "fineweb_train_000000.bin", np.arange(NUM_IDS))
    write_shard(data_folder / "fineweb_val_000000.bin", np.arange(4, 104))
    return data_folder


def trainer_of(**settings: Any) -> SimpleNamespace:
    defaults = {
        "global_rank": 0,
        "world_size": 1,
        "global_step": 0,
        "accumulate_grad_batches": 1,
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "strategy": Mock(root_device=torch.device("cpu")),
    }
    return SimpleNamespace(**(defaults | settings))


def data_of(folder: Path, trainer: SimpleNamespace, **settings: Any) -> FineWeb:
    """Eight micro-batches of two sequences of 16, unless said otherwise."""
    defaults = {
        "train_batch_tokens": 256,
        "train_seq_len": 16,
        "scoring": ScoringConfig(seq_len=16, stride=4, windows_per_batch=4),
    }
    data = FineWeb(path=str(folder), tokenizer_path=str(folder / "tokenizer.model"), **(defaults | settings))
    data.trainer = trainer
    return data


def set_up(folder: Path, trainer: SimpleNamespace, **settings: Any) -> FineWeb:
    data = data_of(folder, trainer, **settings)
    data.setup(trainer.state.fn)
    return data


def read(data: FineWeb, num_batches: int) -> list[list[int]]:
    """Input ids of a rank's next micro-batches."""
    batches = iter(data.train_dataloader())
    return [next(batches)[0].flatten().tolist() for _ in range(num_batches)]


def span(k: int) -> list[int]:
    """Input ids of the stream's k-th span."""
    return [i % NUM_IDS for i in range(k * SPAN, k * SPAN + SPAN - 1)]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_ranks_share_the_eight_micro_batches_of_a_step(world_size: int, accumulation: int, numbered: Path) -> None:
    steps: list[list[list[int]]] = [[], []]
    for rank in range(world_size):
        trainer = trainer_of(world_size=world_size, global_rank=rank)
        data = set_up(numbered, trainer)
        assert trainer.accumulate_grad_batches == accumulation
        batches = read(data, 2 * accumulation)
        steps[0] += batches[:accumulation]
        steps[1] += batches[accumulation:]
    assert sorted(steps[0]) == sorted(span(k) for k in range(8))
    assert sorted(steps[1]) == sorted(span(k) for k in range(8, 16))


def test_micro_batches_have_the_shape_of_sequences_and_targets_follow_inputs(numbered: Path) -> None:
    data = set_up(numbered, trainer_of())
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == targets.shape == (2, 16)
    assert torch.equal(targets, inputs + 1)
    example_inputs, example_targets = data.example_batch(torch.device("cpu"))
    assert example_inputs.shape == example_targets.shape == inputs.shape
    assert example_inputs.dtype == example_targets.dtype == inputs.dtype
    assert example_inputs.stride() == inputs.stride()  # or a compiled graph would not be reused


@pytest.mark.parametrize("accumulation", [3, 8])
def test_an_accumulation_that_contradicts_the_ranks_is_refused(accumulation: int, numbered: Path) -> None:
    trainer = trainer_of(world_size=2, accumulate_grad_batches=accumulation)
    with pytest.raises(UserError, match=rf"accumulate_grad_batches is {accumulation}, but 8 .* over 2 ranks make 4"):
        set_up(numbered, trainer)


def test_the_accumulation_that_follows_may_be_given(numbered: Path) -> None:
    trainer = trainer_of(world_size=2, accumulate_grad_batches=4)
    set_up(numbered, trainer)
    assert trainer.accumulate_grad_batches == 4


@pytest.mark.parametrize("world_size", [3, 5, 16])
def test_a_world_size_that_does_not_divide_the_micro_batches_is_refused(world_size: int, numbered: Path) -> None:
    with pytest.raises(UserError, match=f"a world of {world_size} ranks cannot share the 8 micro-batches"):
        set_up(numbered, trainer_of(world_size=world_size))


@pytest.mark.parametrize("tokens", [0, 250, 128 + 16])
def test_batch_tokens_that_do_not_make_whole_sequences_are_refused(tokens: int, numbered: Path) -> None:
    with pytest.raises(UserError, match=rf"{tokens} is not a multiple .*data\.train_batch_tokens"):
        set_up(numbered, trainer_of(), train_batch_tokens=tokens)


@pytest.mark.parametrize("setting", ["train_seq_len", "train_micro_batches"])
def test_sizes_under_one_are_refused(setting: str, numbered: Path) -> None:
    with pytest.raises(UserError, match=rf"data\.{setting} is 0"):
        data_of(numbered, trainer_of(), **{setting: 0})


def test_the_position_counts_what_all_ranks_have_read(numbered: Path) -> None:
    for world_size in (1, 2, 8):
        trainer = trainer_of(world_size=world_size)
        data = set_up(numbered, trainer)
        assert data.state_dict() == {"position": 0, "step": 0}
        trainer.global_step = 3
        assert data.state_dict() == {"position": 3 * 8 * SPAN, "step": 3}


@pytest.mark.filterwarnings("ignore:the 1000 training tokens have all been read")
@pytest.mark.parametrize("loaded_before_setup", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_resumed_run_reads_on_where_the_first_stopped_whatever_the_ranks(
    world_size: int, loaded_before_setup: bool, numbered: Path
) -> None:
    first = set_up(numbered, trainer := trainer_of(world_size=2))
    trainer.global_step = 3
    state = first.state_dict()

    read_on = []
    for rank in range(world_size):
        trainer = trainer_of(world_size=world_size, global_rank=rank)
        data = data_of(numbered, trainer)
        if loaded_before_setup:
            data.load_state_dict(state)
        data.setup(TrainerFn.FITTING)
        if not loaded_before_setup:  # Lightning's order
            data.load_state_dict(state)
        trainer.global_step = 3
        assert data.state_dict() == state
        read_on += read(data, 8 // world_size)
        trainer.global_step = 5
        assert data.state_dict() == {"position": 5 * 8 * SPAN, "step": 5}
    assert sorted(read_on) == sorted(span(k) for k in range(24, 32))


def windows_of(data: FineWeb) -> WindowLoader:
    [scoring_pass] = data.val_dataloader()
    return scoring_pass.windows


def scored_ids(windows: WindowLoader) -> list[int]:
    return sorted(i for batch in windows for i in batch.target_ids[batch.scored].tolist())


@pytest.mark.parametrize(("max_tokens", "last"), [(0, 103), (2, 5), (50, 53), (100, 103), (5000, 103)])
def test_only_the_first_so_many_validation_ids_are_scored(max_tokens: int, last: int, numbered: Path) -> None:
    scoring = ScoringConfig(seq_len=16, stride=4, max_tokens=max_tokens)
    data = set_up(numbered, trainer_of(), scoring=scoring)
    for windows in (windows_of(data), data.final_pass("").windows):
        assert scored_ids(windows) == list(range(5, last + 1))  # every id after the first, once


def test_the_cap_reaches_over_shards(numbered: Path) -> None:
    write_shard(numbered / "fineweb_val_000001.bin", np.arange(200, 300))
    scoring = ScoringConfig(seq_len=16, stride=4, max_tokens=102)
    data = set_up(numbered, trainer_of(), scoring=scoring)
    assert scored_ids(windows_of(data)) == [*range(5, 104), 200, 201]


def test_ids_beyond_the_cap_are_not_even_looked_at(numbered: Path) -> None:
    write_shard(numbered / "fineweb_val_000000.bin", np.array([4, 5, 6, 60000]))
    scoring = ScoringConfig(seq_len=16, stride=4, max_tokens=3)
    assert scored_ids(windows_of(set_up(numbered, trainer_of(), scoring=scoring))) == [5, 6]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_score_every_id_once_between_them(world_size: int, numbered: Path) -> None:
    validations, results = [], []
    for rank in range(world_size):
        data = set_up(
            numbered, trainer_of(world_size=world_size, global_rank=rank), train_micro_batches=6, train_batch_tokens=192
        )
        validations += scored_ids(windows_of(data))
        results += scored_ids(data.final_pass("").windows)
    assert sorted(validations) == sorted(results) == list(range(5, 104))


@pytest.mark.parametrize(
    ("fn", "val_stride", "stride"),
    [(TrainerFn.FITTING, 0, 16), (TrainerFn.FITTING, 8, 8), (TrainerFn.VALIDATING, 0, 4), (TrainerFn.VALIDATING, 8, 4)],
)
def test_a_fit_validates_by_a_stride_of_its_own_or_in_whole_windows(
    fn: TrainerFn, val_stride: int, stride: int, numbered: Path
) -> None:
    scoring = ScoringConfig(seq_len=16, stride=4, val_stride=val_stride)
    data = set_up(numbered, trainer_of(state=SimpleNamespace(fn=fn)), scoring=scoring)
    assert windows_of(data).windows.stride == stride
    assert data.final_pass("").windows.windows.stride == 4


def test_only_a_result_is_scored_by_the_scorer_that_was_chosen(numbered: Path) -> None:
    class Chosen(Scorer):
        pass

    for fn, chosen in ((TrainerFn.FITTING, False), (TrainerFn.VALIDATING, True)):
        data = set_up(numbered, trainer_of(state=SimpleNamespace(fn=fn)), scorer=Chosen())
        [validation] = data.val_dataloader()
        assert len(data.val_dataloader()) == 1
        assert isinstance(validation.scorer, Chosen) == chosen
        assert isinstance(data.final_pass("").scorer, Chosen)
        assert not isinstance(data.example_pass().scorer, Chosen)


@pytest.mark.parametrize("val_stride", [0, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_example_has_batches_of_every_shape_that_a_validation_has_on_every_rank(
    world_size: int, val_stride: int, numbered: Path
) -> None:
    scoring = ScoringConfig(seq_len=16, stride=4, val_stride=val_stride, windows_per_batch=4)
    validations, examples = set(), []
    for rank in range(world_size):
        data = set_up(numbered, trainer_of(world_size=world_size, global_rank=rank), scoring=scoring)
        validations |= {(*batch.input_ids.shape, *batch.target_ids.shape) for batch in windows_of(data)}
        examples.append({(*batch.input_ids.shape, *batch.target_ids.shape) for batch in data.example_pass().windows})
    assert examples == [validations] * world_size
    assert len(validations) == (2 if val_stride else 1)


def test_fewer_than_two_validation_ids_are_refused(numbered: Path) -> None:
    write_shard(numbered / "fineweb_val_000000.bin", np.array([7]))
    with pytest.raises(UserError, match=rf"validation shards in {numbered} hold 1 ids.*at least two"):
        set_up(numbered, trainer_of())


def test_two_validation_ids_are_one_target(numbered: Path) -> None:
    write_shard(numbered / "fineweb_val_000000.bin", np.array([7, 8]))
    assert scored_ids(windows_of(set_up(numbered, trainer_of()))) == [8]


def test_validating_needs_no_train_shards(numbered: Path) -> None:
    (numbered / "fineweb_train_000000.bin").unlink()
    data = set_up(numbered, trainer_of(state=SimpleNamespace(fn=TrainerFn.VALIDATING)))
    assert len(scored_ids(windows_of(data))) == 99


def test_it_records_what_it_read(numbered: Path) -> None:
    data = set_up(numbered, trainer := trainer_of())
    trainer.global_step = 2
    assert data.summary() == {
        "val_shards": ["fineweb_val_000000.bin"],
        "val_ids": 100,
        "scoring_seq_len": 16,
        "scoring_stride": 4,
        "scoring_max_tokens": 0,
        "scorer": "components.scorer.SlidingWindows",
        "train_shards": ["fineweb_train_000000.bin"],
        "train_ids": NUM_IDS,
        "train_positions": [0, 2 * 8 * SPAN],
        "train_order": "in_order",
    }
