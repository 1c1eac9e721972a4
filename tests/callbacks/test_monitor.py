"""What reaches loggers as a run trains, on a mock trainer and in a finished run."""

import math
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import Reporter
from callbacks.monitor import Monitor
from callbacks.schedule import Schedule
from components.errors import UserError
from tests.callbacks.support import clock_at, trainer_of
from tests.support import FinishedRun, scalars_of


class Speaker(Reporter):
    """Something that has metrics."""

    def __init__(self, shown: dict[str, float]) -> None:
        self.shown = shown

    def metrics(self, trainer: Any) -> dict[str, float]:
        return self.shown


def trainer_with(monitor: Monitor, clock: Clock, **settings: Any) -> SimpleNamespace:
    groups = [{"name": "matrices", "lr": 0.01, "momentum": 0.95}, {"name": "embeddings", "lr": 0.02}]
    data = SimpleNamespace(train_batch_tokens=1000, epoch=0.25)
    return trainer_of(
        [clock, Schedule(), Speaker({"some/metric": 4.0}), Speaker({"other/metric": 5.0}), monitor, Checkpoints()],
        optimizers=[SimpleNamespace(param_groups=groups)],
        loggers=[Mock()],
        datamodule=data,
        **settings,
    )


def take_step(monitor: Monitor, trainer: SimpleNamespace, *micro_losses: float, norm: float = 1.0) -> None:
    """One optimizer step; as from Lightning, a micro-batch's loss is over their number already."""
    module = SimpleNamespace(gradient_norm=torch.tensor(norm))
    for i, loss in enumerate(micro_losses):
        if i == len(micro_losses) - 1:
            trainer.global_step += 1
        outputs = {"loss": torch.tensor(loss / len(micro_losses))}
        monitor.on_train_batch_end(trainer, module, outputs, None, i)


def logged(trainer: SimpleNamespace) -> dict[int, dict[str, float]]:
    return {logged.kwargs["step"]: logged.args[0] for logged in trainer.loggers[0].log_metrics.call_args_list}


def test_the_logged_loss_is_the_mean_over_a_steps_micro_batches() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), accumulate_grad_batches=4)
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0, 2.0, 3.0, 6.0)
    take_step(monitor, trainer, 4.0, 4.0, 4.0, 8.0)
    assert {step: metrics["loss/train"] for step, metrics in logged(trainer).items()} == {1: 3.0, 2: 5.0}
    assert monitor.loss == 5.0


def test_it_logs_and_waits_for_the_device_only_every_so_many_steps() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=3)
    monitor.on_train_start(trainer, None)
    for _ in range(7):
        take_step(monitor, trainer, 1.0)
    assert list(logged(trainer)) == [3, 6]


def test_tokens_a_second_are_those_since_the_last_log() -> None:
    monitor, clock = Monitor(), clock_at(5.0)
    trainer = trainer_with(monitor, clock, log_every_n_steps=2, global_step=10)
    monitor.on_train_start(trainer, None)  # resumed at step 10, after 5 s
    for elapsed in (5.5, 6.0, 8.0, 10.0):
        clock.elapsed = elapsed
        take_step(monitor, trainer, 1.0)
    metrics = logged(trainer)
    assert {step: m["speed/tokens_per_second"] for step, m in metrics.items()} == {12: 2000 / 1.0, 14: 2000 / 4.0}
    assert {step: m["speed/elapsed_seconds"] for step, m in metrics.items()} == {12: 6.0, 14: 10.0}


def test_each_rate_the_momentum_the_share_of_the_data_and_what_reporters_show_are_logged() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at())
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0)
    metrics = logged(trainer)[1]
    assert {name: value for name, value in metrics.items() if name.startswith("lr/")} == {
        "lr/matrices": 0.01,
        "lr/embeddings": 0.02,
    }
    assert (metrics["momentum"], metrics["speed/epoch_of_data"]) == (0.95, 0.25)
    assert (metrics["some/metric"], metrics["other/metric"]) == (4.0, 5.0)


def test_the_gradient_norm_of_the_logged_step_is_logged() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=2)
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0, norm=3.0)
    take_step(monitor, trainer, 1.0, norm=0.5)
    assert logged(trainer)[2]["optimizer/gradient_norm"] == 0.5


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_a_step_that_is_not_finite_ends_the_run_at_the_next_look_and_is_named(loss: float, norm: float) -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=3)
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 2.0)
    trainer.optimizers[0].param_groups[0]["lr"] = 0.5
    take_step(monitor, trainer, loss, norm=norm)
    trainer.optimizers[0].param_groups[0]["lr"] = 0.25
    with pytest.raises(UserError) as error:
        take_step(monitor, trainer, 2.0)
    assert f"The loss is {loss} and the gradient norm {norm} at step 2" in str(error.value)
    assert "matrices 0.5, embeddings 0.02" in str(error.value)  # the rates of that step
    assert "nothing was saved, so start again" in str(error.value)
    assert logged(trainer) == {}


def test_a_loss_that_another_rank_finds_not_finite_ends_the_run_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at())
    others = torch.tensor([[math.nan], [1.0]])
    monkeypatch.setattr("callbacks.monitor.mean_over_ranks", lambda values: (values + others) / 2)
    monitor.on_train_start(trainer, None)
    with pytest.raises(UserError, match=r"The loss is nan and the gradient norm 1\.0 at step 1"):
        take_step(monitor, trainer, 2.0)


@pytest.mark.parametrize("hook", ["on_validation_start", "on_train_epoch_end"])
def test_the_steps_after_the_last_logged_one_are_looked_at_before_they_are_scored(hook: str) -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=3)
    monitor.on_train_start(trainer, None)
    for loss in (1.0, 1.0, 1.0, math.nan):
        take_step(monitor, trainer, loss)
    with pytest.raises(UserError, match="at step 4"):
        getattr(monitor, hook)(trainer, None)


def test_a_check_asks_no_other_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("callbacks.monitor.mean_over_ranks")
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=3)
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0)
    monitor.check(trainer)
    take_step(monitor, trainer, math.nan)
    with pytest.raises(UserError, match="at step 2"):
        monitor.check(trainer)


def test_a_run_starts_at_the_loss_of_the_recipe(finished_run: FinishedRun) -> None:
    # 6.93 of the full size holds for any: with so small weights every piece is as likely, and ln 1024 is 6.93.
    assert scalars_of(finished_run.folder, "loss/train")[1] == pytest.approx(6.93, abs=0.02)


def test_a_runs_curves_fit_together(finished_run: FinishedRun) -> None:
    elapsed = scalars_of(finished_run.folder, "speed/elapsed_seconds")
    rates = scalars_of(finished_run.folder, "speed/tokens_per_second")
    assert list(elapsed) == list(range(1, 13))
    for step in range(2, 13):
        assert rates[step] == pytest.approx(1024 / (elapsed[step] - elapsed[step - 1]), rel=1e-2)
