"""The validation loop's score on a mock trainer."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.scoring import ValidationScore
from components.scoring import WindowLoader
from tests.callbacks.support import trainer_of
from tests.support import bytes_by_id, random_ids


def validate(callback: ValidationScore, trainer: SimpleNamespace, nats_of_target: torch.Tensor, stride: int) -> Mock:
    """Play a validation loop in which target i costs ``nats_of_target[i]`` and is i % 3 + 1 bytes long."""
    num_targets = len(nats_of_target)
    loader = WindowLoader(
        torch.arange(num_targets + 1),  # an id is its own position
        bytes_by_id((torch.arange(num_targets + 1) - 1) % 3 + 1),
        seq_len=16,
        stride=stride,
        windows_per_batch=3,
        device=torch.device("cpu"),
    )
    module = Mock(device=torch.device("cpu"))
    callback.on_validation_epoch_start(trainer, module)
    for i, batch in enumerate(loader):
        callback.on_validation_batch_end(trainer, module, nats_of_target[batch.target_ids - 1], batch, i)
    callback.on_validation_epoch_end(trainer, module)
    return module


@pytest.mark.parametrize("stride", [16, 4, 5])
def test_loss_and_bits_per_byte_are_those_of_every_target_once(stride: int) -> None:
    nats = random_ids(50, vocab_size=100).float() / 16  # exact in any order of summation
    callback = ValidationScore()
    module = validate(callback, trainer_of(), nats, stride)
    logged = {call.args[0]: call.args[1] for call in module.log.call_args_list}
    num_bytes = sum(i % 3 + 1 for i in range(50))
    assert logged == {
        "val_loss": pytest.approx(nats.sum().item() / 50, rel=1e-12),
        "val_bpb": pytest.approx(nats.sum().item() / math.log(2) / num_bytes, rel=1e-12),
    }
    assert callback.score.num_tokens == 50


def test_a_second_validation_starts_from_nothing() -> None:
    callback = ValidationScore()
    validate(callback, trainer_of(), torch.full((50,), 5.0), stride=16)
    validate(callback, trainer_of(), torch.full((20,), 2.0), stride=16)
    assert callback.score.loss == 2.0
    assert callback.score.num_tokens == 20


def test_only_a_validate_command_puts_its_score_into_the_summary() -> None:
    callback = ValidationScore()
    validating = trainer_of(state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    assert callback.summary(validating) == {}
    validate(callback, trainer_of(), torch.full((50,), 5.0), stride=8)
    assert callback.summary(trainer_of()) == {}  # a fit's result is the exported file's
    summary = callback.summary(validating)
    assert (summary["val_loss"], summary["tokens_scored"], summary["bytes_scored"]) == (5.0, 50, 99)
    assert summary["windows"] == 6  # the first 16 targets, then 34 more by 8
    assert summary["eval_time_seconds"] >= 0
