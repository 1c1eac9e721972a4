"""Checkpoints are whole and good or absent, whatever happens to the process and the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.checkpoint_file import CheckpointWriter, checkpoints_in, step_of
from tests.support import needs_gpu, run


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def steps_in(folder: Path) -> list[int]:
    return [step_of(path) for path in checkpoints_in(folder)]


def test_a_checkpoint_holds_the_state_of_its_step(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "new")
    weight = torch.arange(6.0).view(2, 3)
    state = {"weight": weight, "nested": [{"momentum": weight.mT}], "step": 7, "name": "a"}
    writer.start(7, state, torch.tensor(1.0))
    weight.zero_()  # training goes on
    state["nested"].clear()
    writer.wait()
    [path] = checkpoints_in(tmp_path / "new")
    saved = read(path)
    assert torch.equal(saved["weight"], torch.arange(6.0).view(2, 3))
    assert torch.equal(saved["nested"][0]["momentum"], torch.arange(6.0).view(2, 3).mT)
    assert (saved["step"], saved["name"]) == (7, "a")


def test_the_newest_are_kept_by_number_not_by_name(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    for step in (8, 9, 10):
        writer.write(step, {"step": step}, None)
    assert steps_in(tmp_path) == [10, 9]
    writer.remove_all_but(1)
    assert steps_in(tmp_path) == [10]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["loss", "weight", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_no_checkpoint(where: str, bad: float, tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.write(1, {"weight": torch.ones(3)}, torch.tensor(1.0))
    numbers = {name: torch.tensor([1.0, bad if name == where else 2.0]) for name in ("loss", "weight", "optimizer")}
    loss = numbers.pop("loss")
    writer.write(2, {"weight": numbers["weight"], "optimizer": [{0: numbers["optimizer"]}]}, loss)
    assert steps_in(tmp_path) == [1]
    assert writer.take_problems() == ["the checkpoint of step 2 was not saved, since not all its numbers are finite"]
    assert writer.take_problems() == []


def test_a_full_disk_leaves_the_last_whole_checkpoint(small_disk: Path) -> None:
    writer = CheckpointWriter(small_disk / "checkpoints")
    writer.write(1, {"weight": torch.ones(100_000)}, None)
    # Refused in the middle of one tensor, and between many.
    writer.write(2, {"weight": torch.ones(1_000_000)}, None)
    writer.write(3, {str(i): torch.ones(10_000) for i in range(100)}, None)
    writer.write(4, {"weight": torch.zeros(100_000)}, None)
    assert [problem.partition(" was not saved in ")[0] for problem in writer.take_problems()] == [
        "the checkpoint of step 2",
        "the checkpoint of step 3",
    ]
    assert [path.name for path in sorted((small_disk / "checkpoints").iterdir())] == ["step_1.ckpt", "step_4.ckpt"]
    assert torch.equal(read(small_disk / "checkpoints" / "step_1.ckpt")["weight"], torch.ones(100_000))


def test_a_folder_that_cannot_be_written_is_a_problem_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = CheckpointWriter(tmp_path / "file" / "checkpoints")
    writer.write(1, {}, None)
    [problem] = writer.take_problems()
    assert problem.endswith("(Not a directory)")


KILLS = 30
FORK_AND_KILL = f"""
import os, random, signal, sys, time
from pathlib import Path
import torch
from components.checkpoint_file import CheckpointWriter, checkpoints_in

torch.set_num_threads(1)
random.seed(0)
for kill in range({KILLS}):
    folder = Path(sys.argv[1]) / str(kill)
    if (child := os.fork()) == 0:
        writer, step = CheckpointWriter(folder), 0
        while True:
            step += 1
            weights = [torch.full((40_000,), float(step)) for _ in range(10)]
            writer.write(step, {{"step": step, "weights": weights}}, None)
    while not checkpoints_in(folder):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_process_killed_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    result = run("-c", FORK_AND_KILL, str(tmp_path))
    assert result.returncode == 0, result.stderr
    folders = list(tmp_path.iterdir())
    assert len(folders) == KILLS
    for folder in folders:
        whole = checkpoints_in(folder)
        assert 1 <= len(whole) <= 3  # a third if the kill came before the oldest was deleted
        for path in whole:
            saved = read(path)
            assert saved["step"] == step_of(path)
            assert all(torch.equal(weight, torch.full((40_000,), float(saved["step"]))) for weight in saved["weights"])
    assert any(list(folder.glob(".*.partial")) for folder in folders)


@needs_gpu
def test_a_gpus_tensors_leave_through_pinned_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.checkpoint_file.STAGING_BYTES", 1 << 12)
    weights = {str(size): torch.randn(size, device="cuda") for size in (1, 1024, 1025, 5000)}
    weights["scalar"] = torch.tensor(3.0, device="cuda")
    expected = {name: weight.cpu() for name, weight in weights.items()}
    writer = CheckpointWriter(tmp_path)
    writer.start(1, weights, torch.tensor(1.0, device="cuda"))
    for weight in weights.values():
        weight.zero_()
    writer.wait()
    saved = read(tmp_path / "step_1.ckpt")
    assert all(torch.equal(saved[name], expected[name]) for name in expected)
