"""The progress bar: phase, budget, loss and bits per byte."""

import io
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from callbacks.clock import Clock
from callbacks.late_qat import LateQAT
from callbacks.monitor import Monitor
from callbacks.progress_bar import BudgetProgressBar
from callbacks.schedule import Schedule
from tests.callbacks.support import clock_at, trainer_of
from tests.support import FinishedRun


def trainer_with(clock: Clock, **settings: Any) -> SimpleNamespace:
    return trainer_of(
        [clock, Schedule(), LateQAT(), Monitor()],
        **{"progress_bar_metrics": {}, "lightning_module": None, **settings},
    )


def bar_on(screen: io.StringIO, refresh_rate: int = 1) -> BudgetProgressBar:
    bar = BudgetProgressBar(refresh_rate=refresh_rate)
    bar.train_progress_bar = Tqdm(file=screen, ncols=120, mininterval=0)
    return bar


def test_it_shows_the_seconds_of_the_budget_and_what_they_brought() -> None:
    screen = io.StringIO()
    bar, clock = bar_on(screen), clock_at(max_seconds=90)
    trainer = trainer_with(clock, max_steps=20000)
    bar.on_train_epoch_start(trainer)
    clock.elapsed, trainer.global_step = 45.04, 7
    trainer.callbacks[3].loss = 3.14159
    trainer.progress_bar_metrics = {"val_loss": 3.2, "val_bpb": 1.91234}
    bar.on_train_batch_end(trainer, None, None, None, 0)
    shown = screen.getvalue().split("\r")[-1]
    assert shown.startswith("constant rate")
    assert " 50%|" in shown
    assert "45.0/90.0 s" in shown
    for fact in ("step=7", "loss=3.1416", "val_loss=3.2000", "val_bpb=1.9123"):
        assert fact in shown


def test_without_a_budget_it_counts_steps() -> None:
    screen = io.StringIO()
    bar = bar_on(screen)
    trainer = trainer_with(clock_at(elapsed=1000.0), max_steps=20)
    bar.on_train_epoch_start(trainer)
    trainer.global_step = 5
    bar.on_train_batch_end(trainer, None, None, None, 0)
    assert " 25%|" in screen.getvalue()
    assert "5/20 steps" in screen.getvalue()
    assert "loss" not in screen.getvalue()  # none is known yet


def test_it_is_drawn_once_at_every_so_many_steps_and_at_the_last() -> None:
    screen = io.StringIO()
    bar = bar_on(screen, refresh_rate=5)
    trainer = trainer_with(clock_at(), max_steps=100, accumulate_grad_batches=2)
    bar.on_train_epoch_start(trainer)
    drawn = {}
    for batch_idx in range(24):
        before = len(screen.getvalue())
        trainer.global_step = (batch_idx + 1) // 2
        trainer.should_stop = trainer.global_step == 12
        bar.on_train_batch_end(trainer, None, None, None, batch_idx)
        if len(screen.getvalue()) > before:
            drawn[batch_idx] = bar.train_progress_bar.n
    assert drawn == {9: 5, 19: 10, 23: 12}


def test_a_run_shows_every_phase(finished_run: FinishedRun) -> None:
    lines = finished_run.stdout.replace("\n", "\r").split("\r")
    shown = [line for line in lines if "steps" in line]
    # Rates: 12 steps, 8 of warm-down, QAT from 9 of them on.
    # Shown every 5 steps and where a phase begins.
    for step, name in ((0, "constant rate"), (5, "constant rate"), (6, "warm-down"), (10, "late QAT")):
        assert any(line.startswith(name) and f" {step}/12 steps" in line for line in shown), (step, name)
    assert any("step=12" in line and "loss=" in line and "val_bpb=" in line for line in shown)
