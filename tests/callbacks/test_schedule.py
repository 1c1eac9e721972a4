"""The learning-rate and momentum schedules against the recipe's formulas, worked by hand."""

from types import SimpleNamespace

import pytest

from callbacks.clock import Clock
from callbacks.schedule import Schedule
from components.errors import UserError
from tests.callbacks.support import clock_at, small_module, trainer_of
from tests.support import FinishedRun, scalars_of


def run_step(schedule: Schedule, trainer: SimpleNamespace, batch_idx: int = 0) -> None:
    schedule.on_train_batch_start(trainer, None, None, batch_idx)


def trainer_with_groups(schedule: Schedule, clock, **settings) -> SimpleNamespace:
    groups = [
        {"name": "matrices", "lr": 0.025, "initial_lr": 0.025, "momentum": 0.5},
        {"name": "embeddings", "lr": 0.03, "initial_lr": 0.03},
    ]
    return trainer_of([clock, schedule], optimizers=[SimpleNamespace(param_groups=groups)], **settings)


@pytest.mark.parametrize(
    ("elapsed", "step", "multiplier"),
    [
        # min(1, remaining / (3000 * elapsed / step)) of a budget of 600 s.
        (0.0, 0, 1.0),
        (60.0, 600, 1.0),  # 540 s remain; 3000 steps of 0.1 s are 300 s
        (300.0, 3000, 1.0),  # 300 s remain of just as long a warm-down
        (450.0, 4500, 0.5),  # 150 s of 300 s
        (540.0, 5400, 0.2),
        (450.0, 2250, 0.25),  # steps of 0.2 s: 150 s of 600 s
        (600.0, 6000, 0.0),
        (630.0, 6300, 0.0),  # never negative, where a step overran
    ],
)
def test_the_rate_warms_down_on_the_clock(elapsed: float, step: int, multiplier: float) -> None:
    schedule = Schedule(warmdown_steps=3000)
    trainer = trainer_with_groups(schedule, clock_at(elapsed, max_seconds=600), global_step=step, max_steps=20000)
    run_step(schedule, trainer)
    assert schedule.multiplier == pytest.approx(multiplier)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([0.025 * multiplier, 0.03 * multiplier])


@pytest.mark.parametrize(
    ("step", "multiplier"), [(0, 1), (16999, 1), (17000, 1), (17003, 0.999), (18500, 0.5), (19999, 1 / 3000)]
)
def test_without_a_budget_the_rate_warms_down_over_the_last_steps(step: int, multiplier: float) -> None:
    schedule = Schedule(warmdown_steps=3000)
    run_step(schedule, trainer_with_groups(schedule, clock_at(123.0), global_step=step, max_steps=20000))
    assert schedule.multiplier == pytest.approx(multiplier)


@pytest.mark.parametrize(
    ("elapsed", "multiplier"),
    [
        # Steps may take 600 - 12 = 588 s. At f of them min(1, (1 - f) / 0.72), whatever a step takes, at least 0.1.
        (0.0, 1.0),
        (0.28 * 588, 1.0),
        (0.64 * 588, 0.5),
        (0.90 * 588, 0.1 / 0.72),
        (0.95 * 588, 0.1),
        (590.0, 0.1),
    ],
)
def test_the_rate_falls_over_a_share_of_the_budget_without_its_reserve(elapsed: float, multiplier: float) -> None:
    clock = Clock(max_seconds=600, reserve_seconds=12)
    clock.elapsed = elapsed
    for step in (10, 5000):
        schedule = Schedule(warmdown_steps=0, warmdown_fraction=0.72, min_multiplier=0.1)
        run_step(schedule, trainer_with_groups(schedule, clock, global_step=step, max_steps=20000))
        assert schedule.multiplier == pytest.approx(multiplier)


def test_a_share_of_the_steps_where_seconds_are_not_limited() -> None:
    # The 8 steps of the late record's golden trajectory: max((1 - f) / 0.72, 0) from f = step / 8 >= 0.28.
    multipliers = []
    for step in range(8):
        schedule = Schedule(warmdown_steps=0, warmdown_fraction=0.72)
        run_step(schedule, trainer_with_groups(schedule, clock_at(), global_step=step, max_steps=8))
        multipliers.append(schedule.multiplier)
    assert multipliers == pytest.approx([1, 1, 1, *((1 - step / 8) / 0.72 for step in range(3, 8))])


@pytest.mark.parametrize("max_seconds", [0, 600])
def test_no_warmdown_keeps_the_rate_to_the_end(max_seconds: float) -> None:
    schedule = Schedule(warmdown_steps=0)
    clock = clock_at(599.0 if max_seconds else 0, max_seconds=max_seconds)
    trainer = trainer_with_groups(schedule, clock, global_step=19999, max_steps=20000)
    run_step(schedule, trainer)
    assert schedule.multiplier == 1
    assert schedule.missed(trainer) == []


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.92), (750, 0.955), (1500, 0.99), (5000, 0.99)])
def test_momentum_warms_up_over_1500_steps(step: int, momentum: float) -> None:
    schedule = Schedule()
    trainer = trainer_with_groups(schedule, clock_at(), global_step=step, max_steps=20000)
    run_step(schedule, trainer)
    matrices, embeddings = trainer.optimizers[0].param_groups
    assert matrices["momentum"] == pytest.approx(momentum)
    assert "momentum" not in embeddings


def test_without_a_momentum_warmup_it_is_the_last_one_from_the_start() -> None:
    schedule = Schedule(momentum_warmup_steps=0)
    trainer = trainer_with_groups(schedule, clock_at(), max_steps=10)
    run_step(schedule, trainer)
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.99


def test_rates_stay_the_same_within_a_step() -> None:
    schedule = Schedule(warmdown_steps=10)
    clock = clock_at(4.0, max_seconds=8)
    trainer = trainer_with_groups(schedule, clock, global_step=4, accumulate_grad_batches=2)
    run_step(schedule, trainer, batch_idx=0)
    clock.elapsed = 7.0
    run_step(schedule, trainer, batch_idx=1)
    assert schedule.multiplier == pytest.approx(0.4)  # 4 s remain of 10 steps of 1 s
    trainer.global_step = 5
    run_step(schedule, trainer, batch_idx=2)
    assert schedule.multiplier == pytest.approx(1 / 14)  # 1 s remains of 10 steps of 1.4 s


def test_the_schedule_reaches_the_real_optimizers_groups() -> None:
    optimizer = small_module().configure_optimizers()
    schedule = Schedule(warmdown_steps=4)
    trainer = trainer_of([clock_at(), schedule], optimizers=[optimizer], global_step=3, max_steps=4)
    run_step(schedule, trainer)
    children = [group for child in optimizer.optimizers for group in child.param_groups]
    assert {group["name"]: group["lr"] for group in children} == pytest.approx(
        {"matrices": 0.025 / 4, "embeddings": 0.03 / 4, "scalars": 0.02 / 4}
    )
    assert children[0]["momentum"] == pytest.approx(0.92 + 0.07 * 3 / 1500)


def test_it_remembers_when_the_warmdown_began_across_a_resume() -> None:
    schedule = Schedule(warmdown_steps=4)
    trainer = trainer_with_groups(schedule, clock_at(), max_steps=10)
    for trainer.global_step in range(9):
        run_step(schedule, trainer)
    assert schedule.summary(trainer) == {"warmdown_start_step": 7, "final_lr_multiplier": pytest.approx(0.5)}
    resumed = Schedule(warmdown_steps=4)
    resumed.load_state_dict(schedule.state_dict())
    trainer.callbacks[1], trainer.global_step = resumed, 9
    run_step(resumed, trainer)
    assert resumed.summary(trainer) == {"warmdown_start_step": 7, "final_lr_multiplier": pytest.approx(0.25)}


def test_a_run_that_never_warmed_down_says_so() -> None:
    schedule = Schedule(warmdown_steps=10)
    trainer = trainer_with_groups(schedule, clock_at(10, max_seconds=600), global_step=5)
    run_step(schedule, trainer)
    [sentence] = schedule.missed(trainer)
    assert "the 10 steps of warm-down at the end of the budget did not begin within the run's 5 steps" in sentence


def test_a_run_whose_warmdown_is_longer_than_its_budget_says_so() -> None:
    # 3000 steps of 0.5 s are 1500 s of warm-down in 600 s.
    schedule, clock = Schedule(warmdown_steps=3000), clock_at(0.0, max_seconds=600)
    trainer = trainer_with_groups(schedule, clock, max_steps=20000)
    for trainer.global_step in range(3):
        clock.elapsed = 0.5 * trainer.global_step
        run_step(schedule, trainer)
    [sentence] = schedule.missed(trainer)
    assert "never constant: 3000 steps of warm-down are more than the whole budget" in sentence


@pytest.mark.parametrize("setting", ["warmdown_steps", "momentum_warmup_steps"])
def test_negative_lengths_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=rf"schedule\.{setting} is -1"):
        Schedule(**{setting: -1})


@pytest.mark.parametrize("setting", ["warmdown_fraction", "min_multiplier"])
@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_impossible_shares_are_refused(setting: str, share: float) -> None:
    with pytest.raises(UserError, match=rf"schedule\.{setting} is {share}; set it from 0 to 1"):
        Schedule(**{"warmdown_steps": 0, setting: share})


def test_two_lengths_of_the_warmdown_are_refused() -> None:
    with pytest.raises(UserError, match=r"warmdown_steps 3000 and schedule\.warmdown_fraction 0\.72 both give"):
        Schedule(warmdown_steps=3000, warmdown_fraction=0.72)


def test_it_says_how_the_rate_falls() -> None:
    assert Schedule(warmdown_steps=30).describe(trainer_of()) == ["The learning rate falls over the last 30 steps."]
    shared = Schedule(warmdown_steps=0, warmdown_fraction=0.72, min_multiplier=0.1)
    assert shared.describe(trainer_of()) == ["The learning rate falls over the last 72% of the budget to 0.1 of it."]
    assert Schedule(warmdown_steps=0).describe(trainer_of()) == []


def test_a_run_trains_with_the_scheduled_rates(finished_run: FinishedRun) -> None:
    # 12 steps with 8 of warm-down: the first rate under 1 is that of the sixth step, 7/8.
    multipliers = [1] * 5 + [k / 8 for k in range(7, 0, -1)]
    for group, initial in (("matrices", 0.025), ("embeddings", 0.03), ("scalars", 0.02)):
        rates = scalars_of(finished_run.folder, f"lr/{group}")
        assert [rates[step] for step in range(1, 13)] == pytest.approx([initial * m for m in multipliers])
