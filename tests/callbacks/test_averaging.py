"""What an average is offered, and that its value is what training ends with and what a checkpoint is scored as."""

import math
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.averaging import Averaging
from callbacks.common import Event, Reporter
from callbacks.schedule import Schedule
from components.averages import Average, Moment, SnapshotMean
from components.errors import UserError
from components.gpt import GPT
from components.quantization import Nearest
from components.scoring import Score
from components.storage import RECIPE
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import WIDE, clock_at, small_module, trainer_of

VALIDATING = SimpleNamespace(fn=TrainerFn.VALIDATING)


class Latest(Average):
    """Keeps the weights it saw last; talks about itself."""

    def __init__(self, due: bool = True) -> None:
        self.due = due
        self.moments: list[Moment] = []
        self.kept: dict[str, Tensor] | None = None

    def is_due(self, moment: Moment) -> bool:
        self.moments.append(moment)
        return self.due

    def add(self, weights: Mapping[str, Tensor]) -> str | None:
        self.kept = {name: w.clone() for name, w in weights.items()}
        return "kept one" if len(self.moments) == 1 else None

    def value(self) -> dict[str, Tensor] | None:
        return self.kept

    def to(self, device: torch.device) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]

    def metrics(self) -> dict[str, float]:
        return {"latest": 1.0}

    def summary(self) -> dict[str, Any]:
        return {"kept": True}

    def missed(self) -> str | None:
        return None if self.kept else "nothing was kept"

    def describe(self) -> str | None:
        return "The last weights count."


class FirstWeight:
    """A scoring by which weights are as good as a number among them is small."""

    def run(self, network: GPT, show_progress: bool) -> Score:
        nats = 8.0 + network.tok_emb.weight[0, 0].item()
        return Score(nats=nats * math.log(2), num_bytes=1, num_tokens=1, num_windows=1)


class Listener(Reporter):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, trainer: Any, event: Event) -> None:
        self.events.append(event)


@pytest.fixture
def module() -> GPTModule:
    return small_module()


def trainer_with(averaging: Averaging, multiplier: float = 0.1, **settings: Any) -> SimpleNamespace:
    schedule = Schedule()
    schedule.multiplier = multiplier
    data = SimpleNamespace(validation_pass=lambda title: FirstWeight())
    return trainer_of([clock_at(), schedule, averaging, Listener()], **{"datamodule": data, **settings})


def end_step(averaging: Averaging, trainer: SimpleNamespace, module: GPTModule, batch_idx: int = 0) -> None:
    averaging.on_train_batch_end(trainer, module, None, None, batch_idx)


def move(module: GPTModule, step: int) -> dict[str, Tensor]:
    """Change every weight, and give a copy in float64."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
    return copy_of(module)


def copy_of(module: GPTModule) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in module.network.named_parameters()}


def assert_weights(module: GPTModule, expected: dict[str, Tensor]) -> None:
    for name, p in module.network.named_parameters():
        assert torch.equal(p.double(), expected[name]), name


def test_the_network_ends_as_the_mean_of_the_snapshots(module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean(every_n_steps=1))
    trainer = trainer_with(averaging)
    snapshots = []
    for trainer.global_step in range(1, 8):
        snapshots.append(move(module, trainer.global_step))
        end_step(averaging, trainer, module)
    move(module, 99)  # the weights that training ended with are not in it
    averaging.on_fit_end(trainer, module)
    assert averaging.summary(trainer)["snapshots_averaged"] == 7
    for name, p in module.network.named_parameters():
        mean = torch.stack([snapshot[name] for snapshot in snapshots]).mean(dim=0)
        # Eight float32 roundings of sums up to about 20.
        torch.testing.assert_close(p.double(), mean, rtol=1e-6, atol=3e-6)


def test_sums_are_float32_and_do_not_alias_the_weights() -> None:
    module = small_module().bfloat16()
    averaging = Averaging(SnapshotMean(every_n_steps=1))
    first = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    end_step(averaging, trainer_with(averaging, global_step=1), module)
    move(module, 1)
    sums = averaging.state_dict()["average"]["sums"]
    assert {total.dtype for total in sums.values()} == {torch.float32}
    assert all(torch.equal(sums[name], p.float()) for name, p in first.items())


def test_a_snapshot_is_taken_and_announced_after_every_nth_step_only(module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean(every_n_steps=3))
    trainer = trainer_with(averaging)
    for trainer.global_step in range(1, 10):
        end_step(averaging, trainer, module)
    assert trainer.callbacks[-1].events == [
        Event("averaging", f"snapshot {i} at step {step}") for i, step in ((1, 3), (2, 6), (3, 9))
    ]


def test_an_average_is_asked_once_a_step_whatever_its_micro_batches(module: GPTModule) -> None:
    averaging = Averaging(average := Latest())
    # Lightning counts a step up before the hook of its last micro-batch, so those of the next step see it too.
    trainer = trainer_with(averaging, accumulate_grad_batches=4)
    for batch_idx in range(16):
        trainer.global_step = (batch_idx + 1) // 4
        end_step(averaging, trainer, module, batch_idx)
    assert [moment.step for moment in average.moments] == [1, 2, 3, 4]


def test_an_average_is_told_the_rate_and_whether_the_step_saw_quantized_weights() -> None:
    module = small_module(**WIDE)
    averaging = Averaging(average := Latest(due=False))
    end_step(averaging, trainer_with(averaging, 0.25, global_step=1), module)
    module.network.enable_fake_quantization(RECIPE, Nearest())
    end_step(averaging, trainer_with(averaging, 0.125, global_step=2), module)
    assert average.moments == [Moment(1, 0.25, False), Moment(2, 0.125, True)]
    assert average.kept is None  # it was not due


def test_only_words_that_an_average_has_are_announced(module: GPTModule) -> None:
    averaging = Averaging(Latest())
    trainer = trainer_with(averaging)
    for trainer.global_step in (1, 2):
        end_step(averaging, trainer, module)
    assert [event.sentence for event in trainer.callbacks[-1].events] == ["kept one at step 1"]


@pytest.mark.parametrize(("multiplier", "taken"), [(1.0, 0), (0.51, 0), (0.5, 0), (0.49, 1), (0.0, 1)])
def test_snapshots_are_taken_only_under_the_multiplier(multiplier: float, taken: int, module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean(start_multiplier=0.5, every_n_steps=50))
    end_step(averaging, trainer := trainer_with(averaging, multiplier, global_step=50), module)
    assert averaging.metrics(trainer) == {"phase/snapshots": taken}


@pytest.mark.parametrize("only_under_qat", [False, True])
def test_snapshots_may_wait_for_late_qat(only_under_qat: bool) -> None:
    module = small_module(**WIDE)
    averaging = Averaging(average := SnapshotMean(every_n_steps=1, only_under_qat=only_under_qat))
    trainer = trainer_with(averaging, global_step=1)
    end_step(averaging, trainer, module)
    assert average.num_snapshots == (0 if only_under_qat else 1)
    module.network.enable_fake_quantization(RECIPE, Nearest())
    trainer.global_step = 2
    end_step(averaging, trainer, module)
    assert average.num_snapshots == (1 if only_under_qat else 2)


def test_without_a_snapshot_the_weights_stay(module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean(start_multiplier=0))
    trainer = trainer_with(averaging, multiplier=0.0, global_step=50)
    before = copy_of(module)
    end_step(averaging, trainer, module)
    averaging.on_fit_end(trainer, module)
    assert_weights(module, before)
    assert averaging.missed(trainer) == []  # averaging was not asked for


def averaged_and_last(module: GPTModule, averaged: float, last: float) -> tuple[Averaging, SimpleNamespace, Mock]:
    """End a run whose average and last weights score so many bits per byte."""
    averaging, logger = Averaging(Latest()), Mock()
    trainer = trainer_with(averaging, global_step=3, loggers=[logger])
    first_weight = module.network.tok_emb.weight
    with torch.no_grad():
        first_weight[0, 0] = averaged - 8
        end_step(averaging, trainer, module)
        first_weight[0, 0] = last - 8
    averaging.on_fit_end(trainer, module)
    return averaging, trainer, logger


def test_the_last_weights_and_the_average_are_scored_alike(module: GPTModule) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        averaging, trainer, logger = averaged_and_last(module, averaged=7.5, last=7.75)
    last, averaged = pytest.approx(7.75), pytest.approx(7.5)
    assert averaging.summary(trainer) == {"kept": True, "last_weights_bpb": last, "averaged_bpb": averaged}
    assert logger.log_metrics.call_args_list == [
        call({"result/last_weights": last, "result/averaged": averaged}, step=3)
    ]
    words = "in validation's windows: last weights 7.750000 bits per byte, averaged 7.500000"
    assert trainer.callbacks[-1].events[-1] == Event("scores", words)


def test_an_average_that_lost_is_a_warning_and_is_exported_all_the_same(module: GPTModule) -> None:
    with pytest.warns(
        UserWarning, match=r"Averaging has lost: last weights 7\.25\d* bits per byte, averaged 7\.5\d*, "
    ):
        averaged_and_last(module, averaged=7.5, last=7.25)
    assert module.network.tok_emb.weight[0, 0].item() == -0.5


def test_without_an_average_nothing_is_scored(module: GPTModule) -> None:
    averaging = Averaging(Latest(due=False))
    trainer = trainer_with(averaging, global_step=3, datamodule=None)
    end_step(averaging, trainer, module)
    averaging.on_fit_end(trainer, module)
    assert averaging.summary(trainer) == {"kept": True}


def test_a_resumed_run_averages_the_snapshots_of_both_halves(module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean(every_n_steps=1))
    first = move(module, 1)
    end_step(averaging, trainer_with(averaging, global_step=1), module)
    resumed = Averaging(SnapshotMean(every_n_steps=1))
    resumed.load_state_dict(averaging.state_dict())
    trainer = trainer_with(resumed, global_step=2)
    resumed.on_train_start(trainer, module)
    second = move(module, 2)
    end_step(resumed, trainer, module)
    resumed.on_fit_end(trainer, module)
    assert resumed.summary(trainer)["snapshots_averaged"] == 2
    for name, p in module.network.named_parameters():
        torch.testing.assert_close(p.double(), (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("last_weights", [False, True])
def test_validate_scores_the_average_unless_told_otherwise(last_weights: bool, module: GPTModule) -> None:
    average = Latest()
    average.kept = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    averaged, last = copy_of(module), move(module, 1)
    averaging = Averaging(average, last_weights)
    averaging.on_validation_start(trainer_with(averaging, state=VALIDATING), module)
    assert_weights(module, last if last_weights else averaged)


def test_validations_of_a_fit_leave_the_weights_to_training(module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean(every_n_steps=1))
    trainer = trainer_with(averaging, global_step=1)
    end_step(averaging, trainer, module)
    last = move(module, 1)
    averaging.on_validation_start(trainer, module)
    assert_weights(module, last)


def test_validate_scores_the_last_weights_where_there_is_no_average_yet(module: GPTModule) -> None:
    averaging = Averaging(SnapshotMean())
    before = copy_of(module)
    averaging.on_validation_start(trainer_with(averaging, state=VALIDATING), module)
    assert_weights(module, before)


def test_an_average_of_another_kind_is_refused() -> None:
    state = Averaging(SnapshotMean()).state_dict()
    with pytest.raises(UserError, match=r"average is a components.averages.SnapshotMean, but .*\.Latest; give --av"):
        Averaging(Latest()).load_state_dict(state)


def test_it_reports_what_the_average_says(module: GPTModule) -> None:
    averaging = Averaging(Latest())
    trainer = trainer_with(averaging, global_step=1)
    assert averaging.missed(trainer) == ["nothing was kept"]
    end_step(averaging, trainer, module)
    assert averaging.missed(trainer) == []
    assert averaging.metrics(trainer) == {"latest": 1.0}
    assert averaging.summary(trainer) == {"kept": True}
    assert averaging.describe(trainer) == ["The last weights count."]
