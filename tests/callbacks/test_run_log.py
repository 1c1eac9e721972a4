"""train.log: its lines on a mock trainer, and the whole of a finished run's."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Event
from callbacks.monitor import Monitor
from callbacks.run_log import RunLog
from callbacks.scoring import ValidationScore
from components.scoring import Score
from tests.callbacks.support import clock_at, small_module, trainer_of
from tests.support import FinishedRun


@pytest.fixture
def log() -> Iterator[RunLog]:
    log = RunLog()
    yield log
    log.teardown(None, None, "fit")


def trainer_in(folder: Path, elapsed: float = 0.0, loss: float | None = None, **settings: Any) -> SimpleNamespace:
    monitor, score = Monitor(), ValidationScore()
    monitor.loss = loss
    score.score = Score(nats=30.0, num_bytes=40, num_tokens=10, num_windows=1)
    return trainer_of([clock_at(elapsed), monitor, score], log_dir=str(folder / "logs"), **settings)


def lines(folder: Path) -> list[str]:
    return (folder / "logs" / "train.log").read_text().splitlines()


def test_a_line_is_on_the_disk_as_soon_as_its_event_happens(log: RunLog, tmp_path: Path) -> None:
    module, trainer = small_module(), trainer_in(tmp_path, elapsed=3.25, loss=2.5, world_size=4)
    num_params = sum(p.numel() for p in module.parameters())
    log.on_fit_start(trainer, module)
    assert lines(tmp_path) == [f"{num_params} parameters, 4 ranks on cpu"]
    log.on_train_start(trainer, module)
    log.on_event(trainer, Event("tag", "something happened"))
    trainer.global_step = 10
    log.on_train_batch_end(trainer, module, None, None, 0)
    log.on_validation_epoch_end(trainer, module)
    log.on_train_end(trainer, module)
    assert lines(tmp_path)[1:] == [
        "start at step 0, elapsed 3.250 s",
        "something happened",
        "step 10 train_loss 2.5000 elapsed 3.250 s step_avg 325.00 ms",
        "validation step 10 val_loss 3.000000 val_bpb 1.082021",  # 30 / (40 ln 2)
        "stopped at step 10, elapsed 3.250 s",
    ]


def test_only_steps_that_the_monitor_logged_have_a_line(log: RunLog, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, loss=2.5, log_every_n_steps=3, accumulate_grad_batches=2)
    log.on_fit_start(trainer, small_module())
    for batch_idx in range(14):
        trainer.global_step = (batch_idx + 1) // 2
        log.on_train_batch_end(trainer, None, None, None, batch_idx)
    assert [line.split()[1] for line in lines(tmp_path)[1:]] == ["3", "6"]


def test_only_the_first_rank_writes(log: RunLog, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, is_global_zero=False)
    log.on_fit_start(trainer, small_module())
    log.on_event(trainer, Event("tag", "something happened"))
    assert list(tmp_path.iterdir()) == []


def test_a_validation_of_its_own_has_no_log(log: RunLog, tmp_path: Path) -> None:
    log.on_validation_epoch_end(trainer_in(tmp_path, state=SimpleNamespace(fn=TrainerFn.VALIDATING)), small_module())
    assert list(tmp_path.iterdir()) == []


def test_a_run_tells_its_whole_story(finished_run: FinishedRun) -> None:
    found = (finished_run.logs / "train.log").read_text().splitlines()
    kinds = [re.match(r"[^\d:]*", line)[0].strip() for line in found]
    steps = ["step"] * 12
    assert (
        kinds
        == [
            *("", "attention", "start at step"),  # the first line begins with the number of parameters
            *steps[:5],
            "warm-down from step",
            *(steps[5], "validation step"),
            *steps[6:9],
            "late QAT from step",
            *("snapshot", *steps[9:11], "snapshot", steps[11], "validation step"),
            *(
                "stopped at step",
                "in validation's windows",
                "exported",
                "float weights val_loss",
                "artifact val_loss",
            ),
        ]
    )
