"""What a validation logs, what a validate command sums up, and how a result is scored."""

import math
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.scoring import ValidationScore, score_result
from callbacks.signals import Signals
from components.scoring import Score
from tests.callbacks.support import small_module, trainer_of


def score_of(nats: float, num_tokens: int = 50) -> Score:
    return Score(nats=nats, num_bytes=2 * num_tokens, num_tokens=num_tokens, num_windows=3)


def validate(callback: ValidationScore, trainer: SimpleNamespace, score: Score) -> Mock:
    """Play a validation loop, whose one batch gives this score."""
    module = Mock(device=torch.device("cpu"))
    callback.on_validation_epoch_start(trainer, module)
    callback.on_validation_batch_end(trainer, module, score, Mock(), 0)
    callback.on_validation_epoch_end(trainer, module)
    return module


def test_a_validation_logs_its_loss_and_bits_per_byte() -> None:
    module = validate(ValidationScore(), trainer_of(), score_of(nats=150.0))
    logged = {call.args[0]: call.args[1] for call in module.log.call_args_list}
    assert logged == {"val_loss": 3.0, "val_bpb": pytest.approx(1.5 / math.log(2), rel=1e-12)}
    assert all(call.kwargs["sync_dist"] is False for call in module.log.call_args_list)  # of all ranks already


@pytest.mark.parametrize("command", [TrainerFn.FITTING, TrainerFn.VALIDATING])
def test_loggers_get_the_curves_and_nothing_by_epoch(command: TrainerFn) -> None:
    logger = Mock()
    trainer = trainer_of(loggers=[logger], global_step=5, state=SimpleNamespace(fn=command))
    module = validate(ValidationScore(), trainer, score_of(nats=150.0))
    [call] = logger.log_metrics.call_args_list
    assert call.args[0] == {"loss/val": 3.0, "bits_per_byte/val": pytest.approx(1.5 / math.log(2), rel=1e-12)}
    assert call.kwargs == {"step": 5}
    assert all(call.kwargs["logger"] is False for call in module.log.call_args_list)


def test_only_a_validate_command_puts_its_score_into_the_summary() -> None:
    callback = ValidationScore()
    validating = trainer_of(state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    assert callback.summary(validating) == {}
    validate(callback, trainer_of(), score_of(nats=10.0))
    validate(callback, trainer_of(), score_of(nats=250.0))  # the last one counts
    assert callback.summary(trainer_of()) == {}  # a fit's result is the exported file's
    summary = callback.summary(validating)
    assert summary.pop("eval_time_seconds") >= 0
    assert summary.pop("val_bpb") == pytest.approx(2.5 / math.log(2), rel=1e-12)
    assert summary == {"val_loss": 5.0, "tokens_scored": 50, "bytes_scored": 100, "windows": 3}


def test_a_result_is_scored_in_evaluation_mode_and_in_the_runs_precision() -> None:
    module = small_module()
    made = []

    class Pass:
        windows = Mock()

        def run(self, network: torch.nn.Module, show_progress: bool) -> Score:
            made.append((network.training, torch.is_autocast_enabled("cpu"), show_progress))
            return score_of(nats=50.0)

    trainer = trainer_of(
        [Signals()],
        datamodule=SimpleNamespace(final_pass=lambda title: {"some title": Pass()}[title]),
        precision_plugin=Mock(val_step_context=lambda: torch.autocast("cpu", torch.bfloat16)),
        progress_bar_callback=Mock(),
    )
    score, seconds = score_result(trainer, module, "some title", "all is done")
    assert score == score_of(nats=50.0)
    assert seconds >= 0
    trainer.is_global_zero = False  # one bar on the screen
    score_result(trainer, module, "some title", "all is done")
    assert made == [(False, True, True), (False, True, False)]
