"""Four and eight ranks: one stream, one set of weights, one file, one score, and no byte more than needed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.communication import SMALL, Traffic, fake_rank_traffic, fit_traffic, least_bytes, run_ranks
from callbacks.common import find
from callbacks.export import Export
from cli import main
from components.gpt import GPT, GPTConfig
from components.muon import NEWTON_SCHULZ, orthogonalize_all
from components.optimizer import parameter_groups
from tests.support import NARROW, TINY, fit_arguments, scalars_of, summary_of, validate_arguments

EIGHT = pytest.param(8, marks=pytest.mark.slow)
STEPS = (NEWTON_SCHULZ,) * 5


class Recorder(Callback):
    """Keeps the ids that this rank trains on: a digest of each sequence and its targets, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[int, str]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Sequence[Tensor], batch_idx: int
    ) -> None:
        for ids, targets in zip(*batch, strict=True):
            self.read.append((trainer.global_step, digest([ids, targets])))


def digest(tensors: Sequence[Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def fit_and_record(data: Path, runs: Path) -> None:
    """Fit as one rank; write what it read, its last weights and its scores."""
    world_size, rank = int(os.environ["WORLD_SIZE"]), os.environ["RANK"]
    # 4 validations of whole windows in 12 steps, however many micro-batches a rank takes in each.
    settings = {**NARROW, "trainer.devices": world_size, "trainer.val_check_interval": 3 * 8 // world_size}
    strategy = [f"--trainer.strategy={'ddp' if world_size > 1 else 'auto'}"]
    recorder = f"--trainer.callbacks+={__name__}.Recorder"
    trainer = main([*fit_arguments(data, runs, **settings), *strategy, recorder]).trainer
    export = find(trainer, Export)
    assert export.score is not None
    assert export.float_score is not None
    record = {
        "read": find(trainer, Recorder).read,
        "weights": digest(list(trainer.lightning_module.parameters())),
        "scores": [export.float_score, export.score],
    }
    (runs.parent / f"rank_{rank}.json").write_text(json.dumps(record))


def run_fit(world_size: int, data: Path, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a fit's results, and what each of its ranks recorded."""
    folder.mkdir()
    run_ranks(world_size, fit_and_record, data, folder / "runs")
    return folder / "runs", [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [4, EIGHT])
def test_ranks_train_and_score_as_one(world_size: int, data_folder: Path, tmp_path: Path) -> None:
    one, [alone] = run_fit(1, data_folder, tmp_path / "one")
    many, ranks = run_fit(world_size, data_folder, tmp_path / "many")

    # One stream: at every step the ranks together read what one reads.
    assert Counter(tuple(row) for rank in ranks for row in rank["read"]) == Counter(map(tuple, alone["read"]))
    assert {len(rank["read"]) for rank in ranks} == {12 * 16 // world_size}  # 16 sequences of 64 in a step

    # Newton-Schulz rounds to bfloat16, and batches of another size round differently.
    for curve in ("loss/train", "loss/val"):
        values = scalars_of(one, curve)
        assert len(values) >= 4
        assert scalars_of(many, curve) == pytest.approx(values, abs=5e-3)
    assert scalars_of(many, "loss/train")[1] == pytest.approx(scalars_of(one, "loss/train")[1])

    # One set of weights, although no rank computed all of its updates; one score.
    assert len({rank["weights"] for rank in ranks}) == 1
    assert all(rank["scores"] == ranks[0]["scores"] for rank in ranks)
    for mine, theirs in zip(ranks[0]["scores"], alone["scores"], strict=True):
        assert mine[1:] == theirs[1:]  # bytes, tokens and windows
        assert mine[0] == pytest.approx(theirs[0], rel=1e-3)

    # One file, which one process scores alike.
    assert len(list(many.rglob("*.golf"))) == 1
    summary = summary_of(many)
    assert summary["world_size"] == world_size
    main(validate_arguments(data_folder, tmp_path / "validate", artifact=summary["artifact"]))
    assert summary_of(tmp_path / "validate")["val_bpb"] == pytest.approx(summary["val_bpb"], abs=1e-6)


def matrices() -> list[Tensor]:
    """5 of one shape and 2 of its transpose, 1 of another, and 3 squares: no number of ranks over 1 divides them."""
    torch.manual_seed(0)
    shapes = [(6, 10)] * 3 + [(10, 6)] + [(6, 10)] * 2 + [(10, 6), (4, 12)] + [(8, 8)] * 3
    return [torch.randn(shape) for shape in shapes]


def _orthogonalize(alone: list[Tensor]) -> None:
    dist.init_process_group("gloo")
    with Traffic() as traffic:
        results = orthogonalize_all(matrices(), STEPS)
    for mine, theirs in zip(results, alone, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0)
    world_size = dist.get_world_size()
    # Every rank sends the others its share of each shape, rounded up, in bfloat16.
    share = sum(-(-number // world_size) * size for number, size in ((7, 60), (1, 48), (3, 64)))
    assert traffic.sent == {"allgather_base": (world_size - 1) * 2 * share}
    everyone: list[Any] = [None] * world_size
    dist.all_gather_object(everyone, digest(results))
    assert len(set(everyone)) == 1
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [4, EIGHT])
def test_shares_of_matrices_that_do_not_divide(world_size: int) -> None:
    run_ranks(world_size, _orthogonalize, orthogonalize_all(matrices(), STEPS))


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
@pytest.mark.parametrize("world_size", [2, 8])
def test_the_least_that_a_rank_sends(world_size: int) -> None:
    config = GPTConfig(**TINY)
    network = GPT(config)
    sent, least = fake_rank_traffic(config, world_size), least_bytes(network, world_size)
    assert sent.keys() == least.keys()
    # A ring sums 4 bytes per weight by passing on all but its own share of them, twice.
    assert sent["allreduce"] == pytest.approx(least["allreduce"])
    assert least["allreduce"] == 2 * 4 * sum(p.numel() for p in network.parameters()) * (world_size - 1) / world_size
    # Updates are 2 bytes; shares of shapes that do not divide are padded.
    sizes = Counter(tuple(sorted(p.shape)) for p in parameter_groups(network)["matrices"])
    padded = sum(-(-number // world_size) * rows * cols for (rows, cols), number in sizes.items())
    assert sent["allgather_base"] == (world_size - 1) * 2 * padded
    assert least["allgather_base"] < sent["allgather_base"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counting what a process writes needs Linux's /proc")
def test_a_fit_sends_what_its_collectives_need(data_folder: Path) -> None:
    least = least_bytes(GPT(SMALL), 4)
    for rank in fit_traffic(SMALL, 4, data_folder):
        # Gradients once a step, not once a micro-batch; beyond them and the updates, rank 0's clock.
        assert rank["sent"]["allreduce"] == pytest.approx(least["allreduce"])
        assert least["allgather_base"] <= rank["sent"]["allgather_base"] < 1.2 * least["allgather_base"]
        assert rank["sent"].keys() - least.keys() == {"broadcast"}
        assert rank["sent"]["broadcast"] == 16
        assert rank["written"] == pytest.approx(sum(rank["sent"].values()), rel=0.02)
