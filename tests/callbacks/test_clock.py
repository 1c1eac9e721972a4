"""The clock on a mock trainer, whose time a test moves by hand, and in a resumed run."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.clock import Clock
from cli import main
from components.errors import UserError
from tests.callbacks.support import trainer_of
from tests.support import NARROW, FinishedRun, fit_arguments, summary_of


class Time:
    """What the clock reads; moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr("callbacks.clock.time.perf_counter", time)
    return time


def take_step(clock: Clock, trainer: SimpleNamespace, time: Time, seconds: float) -> None:
    """One optimizer step of equally long micro-batches, as Lightning counts it."""
    n = trainer.accumulate_grad_batches
    for i in range(n):
        time.now += seconds / n
        if i == n - 1:
            trainer.global_step += 1
        clock.on_train_batch_end(trainer, None, None, None, i)


def test_time_before_training_starts_does_not_count(time: Time) -> None:
    clock, trainer = Clock(max_seconds=100), trainer_of()
    clock.setup(trainer, None, TrainerFn.FITTING)
    time.now += 50  # as long as compilation takes
    assert clock.elapsed == 0
    clock.on_train_start(trainer, None)
    assert clock.elapsed == 0
    take_step(clock, trainer, time, 2)
    assert clock.elapsed == 2


def test_the_sanity_check_before_training_does_not_start_the_clock(time: Time) -> None:
    clock, trainer = Clock(max_seconds=100), trainer_of(sanity_checking=True)
    clock.on_validation_start(trainer, None)
    time.now += 7
    clock.on_validation_end(trainer, None)
    time.now += 7
    trainer.sanity_checking = False
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 1)
    assert clock.elapsed == 1


def test_the_clock_stands_still_during_validation(time: Time) -> None:
    clock, trainer = Clock(max_seconds=100), trainer_of()
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 2)
    time.now += 0.5  # counts: after the step, before the validation
    clock.on_validation_start(trainer, None)
    time.now += 60
    clock.on_validation_end(trainer, None)
    take_step(clock, trainer, time, 3)
    assert clock.elapsed == 5.5
    assert not trainer.should_stop


def test_a_validation_of_its_own_does_not_start_the_clock(time: Time) -> None:
    clock, trainer = Clock(), trainer_of(state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    clock.on_validation_start(trainer, None)
    clock.on_validation_end(trainer, None)
    time.now += 60
    clock.on_train_epoch_end(trainer, None)
    assert clock.elapsed == 0


def test_the_end_of_the_epoch_stops_the_clock_for_good(time: Time) -> None:
    clock, trainer = Clock(max_seconds=100), trainer_of()
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 2)
    time.now += 1
    clock.on_train_epoch_end(trainer, None)
    time.now += 30
    assert clock.summary(trainer) == {
        "wallclock_seconds": 3,
        "max_wallclock_seconds": 100,
        "overrun_seconds": 0,
    }


def test_a_run_that_overran_says_by_how_much(time: Time) -> None:
    clock, trainer = Clock(max_seconds=20), trainer_of()
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 3)
    take_step(clock, trainer, time, 18.5)
    with pytest.warns(UserWarning, match=r"overrun its budget of 20 s by 1\.500 s, by a step that took longer than"):
        clock.on_train_epoch_end(trainer, None)
    assert clock.summary(trainer)["overrun_seconds"] == 1.5


def test_a_calibration_longer_than_its_reserve_overruns_too(time: Time) -> None:
    clock, trainer = Clock(max_seconds=20, reserve_seconds=5), trainer_of()
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 14)
    clock.on_train_epoch_end(trainer, None)
    with pytest.warns(UserWarning, match=r"by 2\.000 s, by work after its last step .* than clock\.reserve_seconds"):
        clock.charge(8)
    assert clock.summary(trainer)["overrun_seconds"] == 2


def test_a_run_without_a_budget_of_seconds_overruns_nothing(time: Time) -> None:
    clock, trainer = Clock(max_seconds=0), trainer_of()
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 1000)
    clock.on_train_epoch_end(trainer, None)
    assert clock.summary(trainer)["overrun_seconds"] == 0


def test_micro_batches_are_read_once_a_step(time: Time) -> None:
    clock, trainer = Clock(max_seconds=100), trainer_of(accumulate_grad_batches=4)
    clock.on_train_start(trainer, None)
    readings = []
    for i in range(8):
        time.now += 1
        clock.on_train_batch_end(trainer, None, None, None, i)
        readings.append(clock.elapsed)
    assert readings == [0, 0, 0, 4, 4, 4, 4, 8]


@pytest.mark.parametrize(
    ("budget", "steps", "stops_after"),
    [
        # Steps of 3 s: 9 s are spent after three, and the fourth would end at 12.
        (10.0, [3, 3, 3, 3], 3),
        # A step that ends on the budget is within it.
        (12.0, [3, 3, 3, 3], 4),
        # The longest of the last five stands for the next: 1 + 4 + 1 = 6, and 6 + 4 is over 9.
        (9.0, [1, 4, 1, 1], 3),
        # Five others later the first step's 5 s are forgotten: 9 + 5 is within 14, and then steps of 1 s fit up to it.
        (14.0, [5, *[1] * 20], 10),
    ],
)
def test_the_run_stops_before_the_step_that_would_overrun(
    budget: float, steps: list[float], stops_after: int, time: Time
) -> None:
    clock, trainer = Clock(max_seconds=budget), trainer_of()
    clock.on_train_start(trainer, None)
    for seconds in steps:
        take_step(clock, trainer, time, seconds)
        if trainer.should_stop:
            break
    assert trainer.should_stop
    assert trainer.global_step == stops_after
    assert clock.elapsed <= budget


def test_on_a_gpu_the_step_still_under_way_counts_too(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Event:
        count = 0

        def __init__(self) -> None:
            Event.count += 1
            self.step = Event.count

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            waited.append(self.step)

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    clock, trainer = Clock(max_seconds=12), trainer_of(strategy=Mock(root_device=torch.device("cuda", 0)))
    clock.on_train_start(trainer, None)
    while not trainer.should_stop:
        take_step(clock, trainer, time, 3)
    assert trainer.global_step == 3  # 9 s, and two more steps of 3 s would be 15
    assert waited == [1, 2]  # each reading waits for the step before the one just launched


def test_without_a_budget_the_clock_never_stops_a_run(time: Time) -> None:
    clock, trainer = Clock(max_seconds=0), trainer_of(max_steps=100)
    clock.on_train_start(trainer, None)
    for _ in range(10):
        take_step(clock, trainer, time, 1e6)
    assert not trainer.should_stop


def test_progress_is_the_share_of_seconds_or_else_of_steps(time: Time) -> None:
    trainer = trainer_of(max_steps=8)
    by_seconds, by_steps = Clock(max_seconds=8), Clock(max_seconds=0)
    for clock in (by_seconds, by_steps):
        clock.on_train_start(trainer, None)
    take_step(by_seconds, trainer, time, 2)
    assert by_seconds.progress(trainer) == 2 / 8
    assert by_steps.progress(trainer) == 1 / 8


def test_a_resumed_clock_goes_on_from_the_checkpoint(time: Time) -> None:
    clock, trainer = Clock(max_seconds=10), trainer_of()
    clock.on_train_start(trainer, None)
    take_step(clock, trainer, time, 2)
    time.now += 500  # between the two processes
    resumed = Clock(max_seconds=10)
    resumed.load_state_dict(clock.state_dict())
    resumed.on_train_start(trainer, None)
    assert not trainer.should_stop
    take_step(resumed, trainer, time, 2)
    assert resumed.elapsed == 4


@pytest.mark.parametrize(("elapsed", "stops"), [(9.0, False), (9.5, True), (12.0, True)])
def test_a_resumed_run_stops_at_once_where_no_step_fits(elapsed: float, stops: bool, time: Time) -> None:
    clock, trainer = Clock(max_seconds=10), trainer_of(global_step=9)  # a step took elapsed / 9 seconds: 1, 1.06, 1.33
    clock.load_state_dict({"elapsed": elapsed})
    clock.on_train_start(trainer, None)
    assert trainer.should_stop == stops


def test_steps_leave_the_reserve_and_progress_does_not_count_it(time: Time) -> None:
    clock, trainer = Clock(max_seconds=100, reserve_seconds=40), trainer_of()
    clock.on_train_start(trainer, None)
    for _ in range(4):
        take_step(clock, trainer, time, 12)
        assert not trainer.should_stop  # the next one ends at 60 s at the latest
    assert clock.progress(trainer) == 48 / 60
    take_step(clock, trainer, time, 12)
    assert trainer.should_stop
    clock.charge(25)
    assert clock.summary(trainer)["wallclock_seconds"] == 85


@pytest.mark.parametrize("reserve", [-1, 100, 200])
def test_a_reserve_that_leaves_no_budget_is_refused(reserve: float) -> None:
    with pytest.raises(
        UserError, match=rf"reserve_seconds is {reserve}; set it from 0 to below clock\.max_seconds 100"
    ):
        Clock(max_seconds=100, reserve_seconds=reserve)


def test_a_run_without_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"clock\.max_seconds or trainer\.max_steps"):
        Clock(max_seconds=0).setup(trainer_of(max_steps=-1), None, TrainerFn.FITTING)
    Clock(max_seconds=0).setup(trainer_of(max_steps=1), None, TrainerFn.FITTING)
    Clock(max_seconds=1).setup(trainer_of(max_steps=-1), None, TrainerFn.FITTING)
    Clock(max_seconds=0).setup(trainer_of(max_steps=-1), None, TrainerFn.VALIDATING)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(UserError, match=r"clock\.max_seconds is -1"):
        Clock(max_seconds=-1)


def test_a_resumed_run_whose_budget_is_spent_makes_no_step(finished_run: FinishedRun, tmp_path: Path) -> None:
    at_checkpoint = torch.load(finished_run.checkpoint, weights_only=True)["callbacks"]["Clock"]["elapsed"]
    settings = {"trainer.max_steps": 100, "clock.max_seconds": at_checkpoint / 2, "ckpt_path": finished_run.checkpoint}
    cli = main(fit_arguments(finished_run.data, tmp_path, **NARROW, **settings))
    assert summary_of(tmp_path)["step_stop"] == 12
    assert summary_of(tmp_path)["wallclock_seconds"] >= at_checkpoint
    for p, q in zip(cli.model.parameters(), finished_run.cli.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_it_shows_the_elapsed_seconds() -> None:
    clock = Clock()
    clock.elapsed = 12.5
    assert clock.metrics(trainer_of()) == {"speed/elapsed_seconds": 12.5}
