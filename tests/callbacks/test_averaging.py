"""Which snapshots are taken, and that their mean is what training ends with."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.averaging import SnapshotAveraging
from callbacks.late_qat import LateQAT
from callbacks.schedule import Schedule
from components.errors import UserError
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import clock_at, small_module, trainer_of


@pytest.fixture
def module() -> GPTModule:
    return small_module()


def trainer_with(averaging: SnapshotAveraging, multiplier: float = 0.1, **settings) -> SimpleNamespace:
    schedule, late_qat = Schedule(), LateQAT()
    schedule.multiplier = multiplier
    return trainer_of([clock_at(), schedule, late_qat, averaging], **settings)


def end_step(averaging: SnapshotAveraging, trainer: SimpleNamespace, module: GPTModule, batch_idx: int = 0) -> None:
    averaging.on_train_batch_end(trainer, module, None, None, batch_idx)


def move(module: GPTModule, step: int) -> dict[str, torch.Tensor]:
    """Change every weight, and give a copy in float64."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=generator))
    return {name: p.detach().double().clone() for name, p in module.network.named_parameters()}


def test_the_network_ends_as_the_mean_of_the_snapshots(module: GPTModule) -> None:
    averaging = SnapshotAveraging(every_n_steps=1)
    trainer = trainer_with(averaging)
    snapshots = []
    for trainer.global_step in range(1, 8):
        snapshots.append(move(module, trainer.global_step))
        end_step(averaging, trainer, module)
    move(module, 99)  # the weights that training ended with are not in it
    averaging.on_train_end(trainer, module)
    assert averaging.summary(trainer) == {"snapshots_averaged": 7}
    for name, p in module.network.named_parameters():
        mean = torch.stack([snapshot[name] for snapshot in snapshots]).mean(dim=0)
        # Eight float32 roundings of sums up to about 20.
        torch.testing.assert_close(p.double(), mean, rtol=1e-6, atol=3e-6)


def test_sums_are_float32_and_do_not_alias_the_weights() -> None:
    module = small_module().bfloat16()
    averaging = SnapshotAveraging(every_n_steps=1)
    first = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    end_step(averaging, trainer_with(averaging, global_step=1), module)
    move(module, 1)
    sums = averaging.state_dict()["sums"]
    assert {total.dtype for total in sums.values()} == {torch.float32}
    assert all(torch.equal(sums[name], p.float()) for name, p in first.items())


def test_a_snapshot_is_taken_after_every_nth_step_only(module: GPTModule) -> None:
    averaging = SnapshotAveraging(every_n_steps=3)
    trainer = trainer_with(averaging)
    taken = []
    for trainer.global_step in range(1, 10):
        before = averaging.num_snapshots
        end_step(averaging, trainer, module)
        if averaging.num_snapshots > before:
            taken.append(trainer.global_step)
    assert taken == [3, 6, 9]


def test_a_snapshot_is_taken_once_a_step_whatever_its_micro_batches(module: GPTModule) -> None:
    averaging = SnapshotAveraging(every_n_steps=2)
    # Lightning counts a step up before the hook of its last micro-batch, so those of the next step see it too.
    trainer = trainer_with(averaging, accumulate_grad_batches=4)
    for batch_idx in range(16):
        trainer.global_step = (batch_idx + 1) // 4
        end_step(averaging, trainer, module, batch_idx)
    assert averaging.num_snapshots == 2


@pytest.mark.parametrize(("multiplier", "taken"), [(1.0, 0), (0.51, 0), (0.5, 0), (0.49, 1), (0.0, 1)])
def test_snapshots_are_taken_only_under_the_multiplier(multiplier: float, taken: int, module: GPTModule) -> None:
    averaging = SnapshotAveraging(start_multiplier=0.5, every_n_steps=50)
    end_step(averaging, trainer_with(averaging, multiplier, global_step=50), module)
    assert averaging.num_snapshots == taken


@pytest.mark.parametrize("only_under_qat", [False, True])
def test_snapshots_may_wait_for_late_qat(only_under_qat: bool, module: GPTModule) -> None:
    averaging = SnapshotAveraging(every_n_steps=1, only_under_qat=only_under_qat)
    trainer = trainer_with(averaging, global_step=1)
    end_step(averaging, trainer, module)
    assert averaging.num_snapshots == (0 if only_under_qat else 1)
    late_qat = next(callback for callback in trainer.callbacks if isinstance(callback, LateQAT))
    late_qat.start_step = 1
    trainer.global_step = 2
    end_step(averaging, trainer, module)
    assert averaging.num_snapshots == (1 if only_under_qat else 2)


def test_without_a_snapshot_the_weights_stay(module: GPTModule) -> None:
    averaging = SnapshotAveraging(start_multiplier=0)
    trainer = trainer_with(averaging, multiplier=0.0, global_step=50)
    before = [p.detach().clone() for p in module.parameters()]
    end_step(averaging, trainer, module)
    averaging.on_train_end(trainer, module)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert averaging.missed(trainer) == []  # averaging was not asked for


def test_a_resumed_run_averages_the_snapshots_of_both_halves(module: GPTModule) -> None:
    averaging = SnapshotAveraging(every_n_steps=1)
    first = move(module, 1)
    end_step(averaging, trainer_with(averaging, global_step=1), module)
    resumed = SnapshotAveraging(every_n_steps=1)
    resumed.load_state_dict(averaging.state_dict())
    trainer = trainer_with(resumed, global_step=2)
    resumed.on_train_start(trainer, module)
    second = move(module, 2)
    end_step(resumed, trainer, module)
    resumed.on_train_end(trainer, module)
    assert resumed.num_snapshots == 2
    for name, p in module.network.named_parameters():
        torch.testing.assert_close(p.double(), (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("only_under_qat", "sentence"),
    [
        (
            False,
            "no snapshot was averaged: no step that 50 divides came with the learning-rate multiplier under 0.5",
        ),
        (
            True,
            "no snapshot was averaged: no step that 50 divides came under QAT with the learning-rate multiplier "
            "under 0.5",
        ),
    ],
)
def test_a_run_without_a_snapshot_says_so(only_under_qat: bool, sentence: str) -> None:
    averaging = SnapshotAveraging(only_under_qat=only_under_qat)
    assert averaging.missed(trainer_with(averaging)) == [sentence]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"averaging\.every_n_steps is 0"):
        SnapshotAveraging(every_n_steps=0)
    for multiplier in (-0.1, 1.1):
        with pytest.raises(UserError, match=rf"averaging\.start_multiplier is {multiplier}"):
            SnapshotAveraging(start_multiplier=multiplier)
