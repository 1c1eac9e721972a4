"""What reaches TensorBoard, on a mock trainer and in a finished run."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.averaging import SnapshotAveraging
from callbacks.clock import Clock
from callbacks.late_qat import LateQAT
from callbacks.monitor import Monitor
from tests.callbacks.support import clock_at, trainer_of
from tests.support import FinishedRun, scalars_of


def trainer_with(monitor: Monitor, clock: Clock, **settings: Any) -> SimpleNamespace:
    groups = [{"name": "matrices", "lr": 0.01, "momentum": 0.95}, {"name": "tables", "lr": 0.02}]
    data = SimpleNamespace(train_batch_tokens=1000, train_dataloader=lambda: SimpleNamespace(epoch=0.25))
    return trainer_of(
        [clock, LateQAT(), SnapshotAveraging(), monitor],
        optimizers=[SimpleNamespace(param_groups=groups)],
        loggers=[Mock(spec=TensorBoardLogger, experiment=Mock())],
        datamodule=data,
        **settings,
    )


def take_step(monitor: Monitor, trainer: SimpleNamespace, *micro_losses: float) -> None:
    """One optimizer step; as from Lightning, a micro-batch's loss is over their number already."""
    for i, loss in enumerate(micro_losses):
        if i == len(micro_losses) - 1:
            trainer.global_step += 1
        outputs = {"loss": torch.tensor(loss / len(micro_losses))}
        monitor.on_train_batch_end(trainer, None, outputs, None, i)


def logged(trainer: SimpleNamespace) -> dict[int, dict[str, float]]:
    return {call.kwargs["step"]: call.args[0] for call in trainer.loggers[0].log_metrics.call_args_list}


def marks(trainer: SimpleNamespace) -> list[tuple[str, str, int]]:
    return [call.args for call in trainer.loggers[0].experiment.add_text.call_args_list]


def test_the_logged_loss_is_the_mean_over_a_steps_micro_batches() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), accumulate_grad_batches=4)
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0, 2.0, 3.0, 6.0)
    take_step(monitor, trainer, 4.0, 4.0, 4.0, 8.0)
    assert {step: metrics["train_loss"] for step, metrics in logged(trainer).items()} == {1: 3.0, 2: 5.0}
    assert monitor.loss == 5.0


def test_it_logs_and_waits_for_the_device_only_every_so_many_steps() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=3)
    monitor.on_train_start(trainer, None)
    for _ in range(7):
        take_step(monitor, trainer, 1.0)
    assert list(logged(trainer)) == [3, 6]
    assert trainer.strategy.reduce.call_count == 2


def test_tokens_a_second_are_those_since_the_last_log() -> None:
    monitor, clock = Monitor(), clock_at(5.0)
    trainer = trainer_with(monitor, clock, log_every_n_steps=2, global_step=10)
    monitor.on_train_start(trainer, None)  # resumed at step 10, after 5 s
    for elapsed in (5.5, 6.0, 8.0, 10.0):
        clock.elapsed = elapsed
        take_step(monitor, trainer, 1.0)
    metrics = logged(trainer)
    assert {step: m["tokens_per_second"] for step, m in metrics.items()} == {12: 2000 / 1.0, 14: 2000 / 4.0}
    assert {step: m["elapsed_seconds"] for step, m in metrics.items()} == {12: 6.0, 14: 10.0}


def test_each_rate_the_momentum_and_the_share_of_the_data_are_logged() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at())
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0)
    metrics = logged(trainer)[1]
    assert {name: value for name, value in metrics.items() if name.startswith("lr/")} == {
        "lr/matrices": 0.01,
        "lr/tables": 0.02,
    }
    assert (metrics["momentum"], metrics["epoch_of_data"]) == (0.95, 0.25)


def test_the_switch_and_each_snapshot_are_marked_once_even_between_logs() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at(), log_every_n_steps=100)
    _, late_qat, averaging, _ = trainer.callbacks
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0)
    late_qat.start_step, late_qat.start_seconds = 1, 7.25
    take_step(monitor, trainer, 1.0)
    averaging.num_snapshots, averaging.last_snapshot_step = 1, 3
    take_step(monitor, trainer, 1.0)
    averaging.num_snapshots, averaging.last_snapshot_step = 2, 4
    take_step(monitor, trainer, 1.0)
    take_step(monitor, trainer, 1.0)
    assert [(tag, step) for tag, _, step in marks(trainer)] == [("late QAT", 2), ("snapshot", 3), ("snapshot", 4)]
    assert "step 1" in marks(trainer)[0][1]
    assert "7.2 s" in marks(trainer)[0][1]


def test_a_resumed_run_does_not_mark_again_what_came_before() -> None:
    monitor = Monitor()
    trainer = trainer_with(monitor, clock_at())
    _, late_qat, averaging, _ = trainer.callbacks
    late_qat.start_step, late_qat.start_seconds, averaging.num_snapshots = 1, 7.0, 3
    monitor.on_train_start(trainer, None)
    take_step(monitor, trainer, 1.0)
    assert marks(trainer) == []
    assert logged(trainer)[1]["phase/late_qat"] == 1
    assert logged(trainer)[1]["phase/snapshots"] == 3


def test_a_run_starts_at_the_loss_of_the_recipe(finished_run: FinishedRun) -> None:
    # 6.93 of the full size holds for any: with so small weights every piece is as likely, and ln 1024 is 6.93.
    assert scalars_of(finished_run.folder, "train_loss")[1] == pytest.approx(6.93, abs=0.02)


def test_a_runs_curves_fit_together(finished_run: FinishedRun) -> None:
    elapsed = scalars_of(finished_run.folder, "elapsed_seconds")
    rates = scalars_of(finished_run.folder, "tokens_per_second")
    assert list(elapsed) == list(range(1, 13))
    for step in range(2, 13):
        assert rates[step] == pytest.approx(1024 / (elapsed[step] - elapsed[step - 1]), rel=1e-2)


def test_a_runs_phases_are_marked(finished_run: FinishedRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished_run.folder / "lightning_logs" / "version_0"))
    events.Reload()
    steps = {tag: [event.step for event in events.Tensors(f"{tag}/text_summary")] for tag in ("late QAT", "snapshot")}
    # 9 steps of 12 are the first beyond 0.7, so the tenth is marked; snapshots after even steps with a rate under 0.5.
    assert steps == {"late QAT": [10], "snapshot": [10, 12]}
