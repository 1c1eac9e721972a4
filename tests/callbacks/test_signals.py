"""Ranks do not ask each other about signals at every micro-batch."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.signals import Signals


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A group of ranks as far as Lightning can tell; grows by one with every broadcast."""
    asked: list[bool] = []
    monkeypatch.setattr(dist, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "broadcast", lambda *_, **__: asked.append(True))
    return asked


def new_trainer() -> Trainer:
    return Trainer(accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False)


def test_ranks_do_not_wait_for_the_device_to_hear_of_a_termination(asked: list[bool]) -> None:
    trainer = new_trainer()
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert asked, "Lightning no longer asks, so there is nothing left to switch off"
    asked.clear()
    Signals().setup(trainer, Mock(), TrainerFn.FITTING)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert not asked


def test_a_run_without_other_ranks_is_left_as_it_is() -> None:
    Signals().setup(SimpleNamespace(), Mock(), TrainerFn.FITTING)  # it has no loop that could be changed
