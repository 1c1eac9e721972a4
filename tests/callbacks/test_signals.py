"""What signals do to a run: on a mock trainer here, to real processes in ``tests/integration/test_faults.py``."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.monitor import Monitor
from callbacks.signals import HANDLED, Signals, Stopped
from components.errors import UserError
from tests.callbacks.support import trainer_of


class Saver(Checkpoints):
    """Notes what is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[int] = []

    def save_now(self, trainer: Any) -> None:
        self.saved.append(trainer.global_step)

    def how_to_go_on(self) -> str:
        return f"go on from step {self.saved[-1]}"


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Signals that handle what this process receives."""
    signals = Signals()
    with signals.handled():
        yield signals


def fit_of(signals: Signals, **settings: Any) -> tuple[SimpleNamespace, Clock, Saver]:
    """A fit whose training has started."""
    clock, saver = Clock(max_seconds=100), Saver()
    trainer = trainer_of([clock, Monitor(), saver, signals], _signal_connector=Mock(), **settings)
    trainer.strategy.cluster_environment = None
    for callback in (clock, signals):
        callback.setup(trainer, Mock(), TrainerFn.FITTING)
    for callback in (clock, signals):
        callback.on_train_start(trainer, Mock())
    return trainer, clock, saver


def end_step(trainer: SimpleNamespace, clock: Clock, signals: Signals, batch_idx: int = 0) -> None:
    trainer.global_step += 1
    for callback in (clock, signals):
        callback.on_train_batch_end(trainer, Mock(), None, None, batch_idx)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)],
    ids=["TERM", "USR1", "INT"],
)
def test_a_signal_in_a_step_ends_the_run_after_it_with_its_state_saved(
    signum: signal.Signals, code: int, signals: Signals
) -> None:
    trainer, clock, saver = fit_of(signals)
    end_step(trainer, clock, signals)
    os.kill(os.getpid(), signum)
    assert saver.saved == []
    with pytest.raises(Stopped) as stopped:
        end_step(trainer, clock, signals)
    assert stopped.value.code == code
    signals.on_exception(trainer, Mock(), stopped.value)
    assert saver.saved == [2]
    assert stopped.value.sentence == f"Stopped by {signum.name}: go on from step 2."


def test_a_step_of_several_micro_batches_is_finished(signals: Signals) -> None:
    trainer, clock, _ = fit_of(signals, accumulate_grad_batches=2)
    os.kill(os.getpid(), signal.SIGTERM)
    end_step(trainer, clock, signals, batch_idx=0)
    with pytest.raises(Stopped):
        end_step(trainer, clock, signals, batch_idx=1)


def test_a_signal_before_the_first_step_leaves_at_once_with_nothing_to_save(signals: Signals) -> None:
    with pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143
    trainer = trainer_of()
    signals.on_exception(trainer, Mock(), stopped.value)  # asks for no checkpoints, which this trainer lacks
    assert stopped.value.sentence == "Stopped by SIGTERM: there was nothing to save."


def test_a_second_termination_does_not_disturb_the_first(signals: Signals) -> None:
    trainer, clock, _ = fit_of(signals)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(Stopped, match="143") as stopped:
        end_step(trainer, clock, signals)
    os.kill(os.getpid(), signal.SIGTERM)
    signals.on_exception(trainer, Mock(), stopped.value)
    assert "SIGTERM" in str(stopped.value.sentence)


def test_a_validation_in_a_fit_ends_before_its_next_batch(signals: Signals) -> None:
    trainer, _, saver = fit_of(signals, global_step=7)
    scoring = SimpleNamespace(windows=SimpleNamespace())
    signals.on_validation_batch_start(trainer, Mock(), scoring, 0)
    scoring.windows.before_batch()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        scoring.windows.before_batch()
    signals.on_exception(trainer, Mock(), stopped.value)
    assert saver.saved == [7]


def test_rank_0_is_what_the_clock_tells_all_ranks_of(signals: Signals) -> None:
    trainer, clock, _ = fit_of(signals, is_global_zero=False)
    clock._agree = lambda seconds: seconds  # type: ignore[method-assign] # rank 0 has heard of nothing
    os.kill(os.getpid(), signal.SIGTERM)
    end_step(trainer, clock, signals)  # on with the others
    clock.signal = signal.SIGTERM
    with pytest.raises(Stopped):
        end_step(trainer, clock, signals)


def test_a_state_that_is_not_finite_is_not_saved(signals: Signals) -> None:
    trainer, clock, saver = fit_of(signals)
    [monitor] = [callback for callback in trainer.callbacks if isinstance(callback, Monitor)]
    monitor.check = Mock(side_effect=UserError("The loss is nan"))  # type: ignore[method-assign]
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        end_step(trainer, clock, signals)
    with pytest.raises(UserError, match="The loss is nan"):
        signals.on_exception(trainer, Mock(), stopped.value)
    assert saver.saved == []


def test_the_handlers_of_before_are_restored() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    with Signals().handled():
        assert [signal.getsignal(number) for number in HANDLED] != before
    assert [signal.getsignal(number) for number in HANDLED] == before


def test_lightning_handles_no_signal_and_asks_no_rank_at_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(dist, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: asked.append(True))
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, callbacks=[Clock(max_seconds=1)]
    )
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert asked, "Lightning no longer asks, so there is nothing left to switch off"
    asked.clear()
    Signals().setup(trainer, Mock(), TrainerFn.FITTING)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert not asked
    before = signal.getsignal(signal.SIGTERM)
    trainer._signal_connector.register_signal_handlers()
    assert signal.getsignal(signal.SIGTERM) == before
