"""What the DataModule shows a quantizer: the first micro-batches of the stream, shared out over ranks."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from components.scoring import ScoringConfig
from datamodules.fineweb import FineWeb
from tests.support import write_shard

SPAN = 33  # ids of a micro-batch of 32 targets


@pytest.fixture
def numbered(data_folder: Path) -> Path:
    """A folder in which train id i is i, so that a batch says where it was read."""
    write_shard(data_folder / "fineweb_train_000000.bin", np.arange(1000))
    write_shard(data_folder / "fineweb_val_000000.bin", np.arange(4, 104))
    return data_folder


def data_of(folder: Path, rank: int, world_size: int) -> FineWeb:
    data = FineWeb(
        path=str(folder),
        tokenizer_path=str(folder / "tokenizer.model"),
        train_batch_tokens=256,
        train_seq_len=16,
        scoring=ScoringConfig(seq_len=16, stride=4, windows_per_batch=4),
    )
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        global_step=0,
        accumulate_grad_batches=1,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        strategy=Mock(root_device=torch.device("cpu")),
    )
    data.load_state_dict({"position": 5 * SPAN, "step": 0})  # a resumed run's stream stands elsewhere
    data.setup(TrainerFn.FITTING)
    return data


@pytest.mark.parametrize("num_batches", [1, 3, 8])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_streams_first_micro_batches(num_batches: int, world_size: int, numbered: Path) -> None:
    found = []
    for rank in range(world_size):
        batches = list(data_of(numbered, rank, world_size).calibration_batches(num_batches))
        assert all(batch.shape == (2, 16) and batch.dtype == torch.int64 for batch in batches)
        found += [batch.flatten().tolist() for batch in batches]
    assert sorted(found) == [list(range(SPAN * k, SPAN * k + 32)) for k in range(num_batches)]


def test_the_stream_that_is_trained_on_stays_where_it_is(numbered: Path) -> None:
    data = data_of(numbered, rank=0, world_size=1)
    position = data.state_dict()["position"]
    assert len(list(data.calibration_batches(2))) == 2
    assert data.state_dict()["position"] == position
    assert next(iter(data.train_dataloader()))[0][0, 0] == 5 * SPAN
