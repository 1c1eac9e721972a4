"""When late QAT switches, and what the network computes before, after and in between."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Event
from callbacks.late_qat import LateQAT
from components.errors import UserError
from components.gptq import GPTQ
from components.layers import Fakeable
from components.quantization import Nearest, Quantizer, quantize
from components.storage import RECIPE, Storage, StorageRule, keep_last_keys
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import WIDE, clock_at, small_module, trainer_of
from tests.support import random_ids, recipe_storages


def storages(module: GPTModule) -> set[Storage | None]:
    """What forward passes see the network's matrices and tables through; None for themselves."""
    layers = [layer for layer in module.network.modules() if isinstance(layer, Fakeable)]
    return {layer.fake[1] if layer.fake else None for layer in layers}


def start_batch(late_qat: LateQAT, trainer: SimpleNamespace, module: GPTModule, batch_idx: int = 0) -> None:
    late_qat.on_train_batch_start(trainer, module, None, batch_idx)


FLOAT = {None}
QUANTIZED = {None, Storage.INT5, Storage.INT6}


@pytest.fixture(scope="module")
def module() -> GPTModule:
    return small_module(**WIDE)


@pytest.fixture(autouse=True)
def _float_network(module: GPTModule) -> None:
    module.network.disable_fake_quantization()


def test_it_switches_at_the_first_step_at_or_beyond_the_share_of_seconds(module: GPTModule) -> None:
    late_qat, clock = LateQAT(start_fraction=0.85), clock_at(max_seconds=600)
    trainer = trainer_of([clock, late_qat])
    for trainer.global_step, clock.elapsed in enumerate((0.0, 300.0, 509.9)):  # 0.85 x 600 s are 510 s
        start_batch(late_qat, trainer, module)
        assert not late_qat.active
        assert storages(module) == FLOAT
    trainer.global_step, clock.elapsed = 3, 510.0
    start_batch(late_qat, trainer, module)
    assert late_qat.active
    assert storages(module) == QUANTIZED
    trainer.global_step, clock.elapsed = 5, 520.0
    start_batch(late_qat, trainer, module)
    assert late_qat.summary(trainer) == {"qat_start_step": 3, "qat_start_seconds": 510.0, "qat_steps": 2}


@pytest.mark.parametrize(
    ("fraction", "num_steps", "first"),
    [(0.85, 20, 17), (0.85, 21, 18), (0.5, 10, 5), (0.0, 10, 0)],  # 0.85 x 20 = 17; 0.85 x 21 = 17.85
)
def test_without_a_budget_it_switches_at_the_share_of_steps(
    fraction: float, num_steps: int, first: int, module: GPTModule
) -> None:
    late_qat = LateQAT(start_fraction=fraction)
    trainer = trainer_of([clock_at(), late_qat], max_steps=num_steps)
    for trainer.global_step in range(num_steps):
        start_batch(late_qat, trainer, module)
        assert late_qat.active == (trainer.global_step >= first)
    assert late_qat.start_step == first


def test_a_share_of_one_is_never(module: GPTModule) -> None:
    late_qat, clock = LateQAT(start_fraction=1.0), clock_at(elapsed=700, max_seconds=600)
    trainer = trainer_of([clock, late_qat])
    start_batch(late_qat, trainer, module)
    assert storages(module) == FLOAT
    assert late_qat.missed(trainer) == []
    assert late_qat.summary(trainer) == {"qat_start_step": None, "qat_start_seconds": None, "qat_steps": 0}


def test_it_never_switches_within_a_step(module: GPTModule) -> None:
    late_qat, clock = LateQAT(start_fraction=0.5), clock_at(elapsed=4, max_seconds=10)
    trainer = trainer_of([clock, late_qat], accumulate_grad_batches=4)
    start_batch(late_qat, trainer, module, batch_idx=0)
    clock.elapsed = 6
    for batch_idx in (1, 2, 3):
        start_batch(late_qat, trainer, module, batch_idx)
        assert storages(module) == FLOAT
    start_batch(late_qat, trainer, module, batch_idx=4)
    assert storages(module) == QUANTIZED


class Halves(Nearest):
    """Rounds the halves of weights."""

    def fake_quantize(self, weight: torch.Tensor, storage: Storage) -> torch.Tensor:
        return super().fake_quantize(weight / 2, storage)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("quantizer", [Nearest(), Halves()])
def test_after_the_switch_the_network_computes_what_export_would_store(
    quantizer: Quantizer, keep: int, module: GPTModule
) -> None:
    late_qat = LateQAT(start_fraction=0, rules=(*keep_last_keys(keep), *RECIPE), quantizer=quantizer)
    start_batch(late_qat, trainer_of([clock_at(max_seconds=1), late_qat]), module)
    inputs, targets = random_ids(2, 16, seed=1), random_ids(2, 16, seed=2)
    trained_with = module.network(inputs, targets)

    rounded = small_module(**WIDE)
    state = module.network.state_dict()
    recipe = recipe_storages({name: weight.shape for name, weight in state.items()}, keep)
    for name, weight in state.items():
        if recipe[name] in (Storage.INT5, Storage.INT6):
            share = 0.5 if isinstance(quantizer, Halves) else 1.0
            state[name] = quantize(share * weight, recipe[name]).dequantize()
    rounded.network.load_state_dict(state)
    assert torch.equal(trained_with, rounded.network(inputs, targets))
    module.network.disable_fake_quantization()
    assert not torch.equal(trained_with, module.network(inputs, targets))


def test_the_rules_say_what_is_faked(module: GPTModule) -> None:
    rules = (StorageRule("tok_emb.weight", "int8", qat=True), StorageRule("*", "float16"))
    late_qat = LateQAT(start_fraction=0, rules=rules)
    start_batch(late_qat, trainer_of([clock_at(max_seconds=1), late_qat]), module)
    assert storages(module) == {None, Storage.INT8}


def test_it_names_its_phase_and_marks_the_switch(module: GPTModule) -> None:
    late_qat, clock = LateQAT(start_fraction=0.5), clock_at(max_seconds=10)
    listener = Mock(spec=["on_event"])
    trainer = trainer_of([clock, late_qat, listener])
    start_batch(late_qat, trainer, module)
    assert (late_qat.phase(trainer), late_qat.metrics(trainer)) == (None, {"phase/late_qat": 0})
    trainer.global_step, clock.elapsed = 7, 6.25
    for _ in range(2):  # said once
        start_batch(late_qat, trainer, module)
    assert (late_qat.phase(trainer), late_qat.metrics(trainer)) == ("late QAT", {"phase/late_qat": 1})
    listener.on_event.assert_called_once_with(trainer, Event("late QAT", "late QAT from step 7, 6.250 s"))


def test_its_variant_fakes_training_steps_while_it_lasts(module: GPTModule) -> None:
    late_qat = LateQAT()
    [variant] = late_qat.variants(trainer_of([late_qat]), module)
    with variant.applied():
        assert storages(module) == QUANTIZED
    assert storages(module) == FLOAT
    assert not late_qat.active
    assert not variant.scored  # validations see the float weights


def test_a_run_that_never_switches_has_no_variant_and_nothing_to_describe(module: GPTModule) -> None:
    trainer = trainer_of([late_qat := LateQAT(start_fraction=1)])
    assert list(late_qat.variants(trainer, module)) == []
    assert late_qat.describe(trainer) == []


def test_validation_sees_float_weights_and_training_goes_on_quantized(module: GPTModule) -> None:
    late_qat = LateQAT(start_fraction=0)
    trainer = trainer_of([clock_at(max_seconds=1), late_qat])
    start_batch(late_qat, trainer, module)
    late_qat.on_validation_start(trainer, module)
    assert storages(module) == FLOAT
    late_qat.on_validation_end(trainer, module)
    assert storages(module) == QUANTIZED
    late_qat.on_train_end(trainer, module)
    assert storages(module) == FLOAT


def test_a_validate_of_its_checkpoint_leaves_the_network_in_float(module: GPTModule) -> None:
    late_qat = LateQAT(start_fraction=0)
    late_qat.load_state_dict({"start_step": 3, "start_seconds": 0.5})
    trainer = trainer_of([clock_at(max_seconds=1), late_qat], state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    late_qat.on_validation_start(trainer, module)
    late_qat.on_validation_end(trainer, module)
    assert storages(module) == FLOAT


def test_it_refuses_a_calibrated_quantizer_only_to_train(module: GPTModule) -> None:
    late_qat = LateQAT(start_fraction=0.85, quantizer=GPTQ())
    late_qat.setup(trainer_of(), module, TrainerFn.VALIDATING)
    with pytest.raises(UserError, match="late QAT cannot fake what GPTQ stores"):
        late_qat.setup(trainer_of(), module, TrainerFn.FITTING)


def test_validation_before_the_switch_does_not_switch(module: GPTModule) -> None:
    late_qat = LateQAT(start_fraction=0.9)
    trainer = trainer_of([clock_at(max_seconds=1), late_qat])
    late_qat.on_validation_start(trainer, module)
    late_qat.on_validation_end(trainer, module)
    assert storages(module) == FLOAT


def test_a_resumed_run_goes_on_quantized_and_remembers_when_it_began(module: GPTModule) -> None:
    before = LateQAT(start_fraction=0.5)
    start_batch(before, trainer_of([clock_at(6, max_seconds=10), before], global_step=7), module)
    module.network.disable_fake_quantization()
    resumed = LateQAT(start_fraction=0.5)
    resumed.load_state_dict(before.state_dict())
    trainer = trainer_of([clock_at(8, max_seconds=10), resumed], global_step=9)
    resumed.on_train_start(trainer, module)
    assert storages(module) == QUANTIZED
    start_batch(resumed, trainer, module)
    assert resumed.summary(trainer) == {"qat_start_step": 7, "qat_start_seconds": 6, "qat_steps": 2}


def test_a_run_resumed_from_before_the_switch_starts_in_float(module: GPTModule) -> None:
    resumed = LateQAT(start_fraction=0.5)
    resumed.load_state_dict(LateQAT(start_fraction=0.5).state_dict())
    resumed.on_train_start(trainer_of([clock_at(4, max_seconds=10), resumed], global_step=3), module)
    assert storages(module) == FLOAT


def test_a_run_that_never_switched_says_so() -> None:
    late_qat = LateQAT(start_fraction=0.85)
    [sentence] = late_qat.missed(trainer_of([clock_at(240, max_seconds=600), late_qat]))
    assert sentence == (
        "late QAT never began: no step started at or beyond late_qat.start_fraction 0.85 of the budget, of which the "
        "run spent 40%"
    )


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=rf"late_qat\.start_fraction is {fraction}"):
        LateQAT(start_fraction=fraction)
