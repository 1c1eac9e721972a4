"""When a checkpoint is taken, what it may hold, and what is said of interruptions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.checkpoint import REACHED, Checkpoints
from callbacks.run_folder import CHECKPOINTS
from components.checkpoint_file import checkpoints_in
from components.errors import UserError
from components.run_files import SUMMARY_NAME
from tests.callbacks.support import clock_at, trainer_of
from tests.support import FinishedRun

MODULE: Any = None
LOSS = {"loss": torch.tensor(2.0)}


class Run:
    """A fit of one-second steps whose state is one weight."""

    def __init__(self, folder: Path, checkpoints: Checkpoints, **settings: Any) -> None:
        self.checkpoints, self.clock, self.weight = checkpoints, clock_at(0.0), torch.zeros(3)
        connector = SimpleNamespace(dump_checkpoint=lambda weights_only: {"weight": self.weight})
        settings = {"log_dir": str(folder), "ckpt_path": None, "_checkpoint_connector": connector, **settings}
        self.trainer: Any = trainer_of([self.clock, checkpoints], **settings)
        self.folder = folder / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        checkpoints.setup(self.trainer, MODULE, TrainerFn.FITTING)

    def start(self) -> None:
        self.checkpoints.on_train_start(self.trainer, MODULE)

    def update(self) -> None:
        self.checkpoints.on_before_optimizer_step(self.trainer, MODULE, None)
        self.weight += 1

    def end_step(self, batch_idx: int | None = None) -> None:
        self.trainer.global_step += 1
        self.clock.elapsed += 1
        index = self.trainer.global_step - 1 if batch_idx is None else batch_idx
        self.checkpoints.on_train_batch_end(self.trainer, MODULE, LOSS, None, index)
        assert self.checkpoints._writer is not None
        self.checkpoints._writer.wait()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.update()
            self.end_step()

    @property
    def saved(self) -> list[int]:
        return [int(torch.load(path, weights_only=True)["weight"][0]) for path in checkpoints_in(self.folder)]


def test_checkpoints_are_taken_by_the_clock_and_the_newest_two_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=3))
    run.start()
    seen = []
    for _ in range(10):
        run.steps(1)
        seen.append(run.saved)
    assert seen == [[], [], [3], [3], [3], [6, 3], [6, 3], [6, 3], [9, 6], [9, 6]]


def test_a_resumed_run_counts_from_where_it_starts(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=3))
    run.clock.elapsed = 100.0
    run.start()
    run.steps(2)
    assert run.saved == []


def test_zero_seconds_leave_the_last_checkpoint_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=0))
    run.start()
    run.steps(5)
    assert run.saved == []
    run.checkpoints.on_train_epoch_end(run.trainer, MODULE)
    assert run.saved == [5]


def test_only_rank_0_saves(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=1), is_global_zero=False)
    run.start()
    run.steps(3)
    run.checkpoints.on_train_epoch_end(run.trainer, MODULE)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_keeps_its_last(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=2))
    run.start()
    run.steps(5)
    run.checkpoints.on_train_epoch_end(run.trainer, MODULE)
    assert run.saved == [5, 4]
    run.checkpoints.on_fit_end(run.trainer, MODULE)
    assert run.saved == [5]


def test_saving_now_is_done_on_return(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints())
    run.start()
    run.steps(3)
    assert run.checkpoints.newest is None
    assert run.checkpoints.save_now(run.trainer) == run.folder / "step_3.ckpt"
    assert run.checkpoints.newest == run.folder / "step_3.ckpt"
    assert run.saved == [3]


def test_a_state_that_belongs_to_no_step_is_not_saved(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(), accumulate_grad_batches=2)
    assert run.checkpoints.save_now(run.trainer) is None  # in warm-up
    run.start()
    run.update()
    run.end_step(batch_idx=1)
    run.checkpoints.save_now(run.trainer)
    run.update()
    assert run.checkpoints.save_now(run.trainer) == run.folder / "step_1.ckpt"
    run.end_step(batch_idx=2)  # a micro-batch that ends no step
    assert run.checkpoints.save_now(run.trainer) == run.folder / "step_1.ckpt"
    assert run.saved == [1]
    run.checkpoints.on_train_epoch_end(run.trainer, MODULE)
    assert run.saved == [1]


def test_a_checkpoint_that_is_missing_is_a_warning(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=1))
    run.start()
    run.steps(1)
    run.weight.fill_(float("nan"))
    run.steps(1)
    with pytest.warns(UserWarning, match=r"checkpoint of step 2 was not saved.*the newest one is .*step_1.ckpt"):
        run.steps(1)


def test_how_to_go_on(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints())
    run.start()
    assert run.checkpoints.how_to_go_on() == "nothing was saved, so start again"
    run.steps(4)
    run.checkpoints.save_now(run.trainer)
    path = run.folder / "step_4.ckpt"
    assert run.checkpoints.how_to_go_on() == (
        f"to go on from step 4, give the same command with --ckpt_path last, or with --ckpt_path {path}"
    )


def interrupted_at(step: int, folder: Path) -> Run:
    """A run that was killed after so many steps, its last checkpoint at step 6."""
    run = Run(folder, Checkpoints(every_seconds=3))
    run.start()
    run.steps(step)
    return run


def gone_on_from(interrupted: Run, folder: Path) -> dict[str, Any]:
    checkpoints = Checkpoints()
    checkpoints.load_state_dict(interrupted.checkpoints.state_dict())
    resumed = Run(folder, checkpoints, ckpt_path=str(interrupted.folder / "step_6.ckpt"), global_step=6)
    resumed.clock.elapsed = 6.0
    resumed.start()
    return checkpoints.summary(resumed.trainer)


def test_what_an_interruption_cost_is_in_the_summary(tmp_path: Path) -> None:
    run = interrupted_at(8, tmp_path / "first")
    assert run.checkpoints.summary(run.trainer) == {"interruptions": 0, "steps_lost": 0, "seconds_lost": 0}
    assert gone_on_from(run, tmp_path / "second") == {"interruptions": 1, "steps_lost": 2, "seconds_lost": 2.0}


def test_interruptions_add_up(tmp_path: Path) -> None:
    run = interrupted_at(8, tmp_path / "first")
    run.checkpoints.load_state_dict({"interruptions": 2, "steps": 5, "seconds": 7.5})
    assert gone_on_from(run, tmp_path / "second") == {"interruptions": 3, "steps_lost": 7, "seconds_lost": 9.5}


def test_going_on_from_a_finished_run_is_no_interruption(tmp_path: Path) -> None:
    run = interrupted_at(8, tmp_path / "first")
    (tmp_path / "first" / SUMMARY_NAME).touch()
    assert gone_on_from(run, tmp_path / "second")["interruptions"] == 0


def test_progress_is_noted_after_every_step(tmp_path: Path) -> None:
    run = Run(tmp_path, Checkpoints(every_seconds=0))
    run.start()
    run.steps(11)
    assert (tmp_path / REACHED).read_text().split() == ["11", "11.000"]


def test_negative_seconds_are_refused() -> None:
    with pytest.raises(UserError, match=r"checkpoint\.every_seconds is -1"):
        Checkpoints(every_seconds=-1)


def test_a_checkpoint_is_read_without_running_code(finished_run: FinishedRun) -> None:
    checkpoint = torch.load(finished_run.checkpoint, map_location="cpu", weights_only=True)
    assert checkpoint["global_step"] == 12
    assert {"state_dict", "optimizer_states", "callbacks", "loops", "FineWeb"} <= checkpoint.keys()
