"""When a run begins to loop, what the network computes before and after, and what is exported."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks.common import phase_of
from callbacks.loops import Loops
from cli import main
from components.artifact import read_artifact
from components.errors import UserError
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import clock_at, small_module, trainer_of
from tests.support import NARROW, fit_arguments, marks_of, random_ids, scalars_of, summary_of

LOOP = {"num_layers": 3, "loop_start": 1, "loop_end": 1, "num_loops": 2}


@pytest.fixture
def module() -> GPTModule:
    return small_module(**LOOP)


def trainer_with(loops: Loops, module: GPTModule, elapsed: float = 0.0, **settings) -> SimpleNamespace:
    return trainer_of([clock_at(elapsed, max_seconds=100), loops], lightning_module=module, **settings)


def test_it_switches_once_at_the_first_step_at_or_beyond_its_share(module: GPTModule) -> None:
    loops = Loops(start_fraction=0.35)
    trainer = trainer_with(loops, module)
    loops.on_train_start(trainer, module)
    for trainer.global_step, trainer.callbacks[0].elapsed in ((0, 0.0), (1, 34.9)):
        loops.on_train_batch_start(trainer, module, None, 0)
        assert not module.network.looping
        assert loops.phase(trainer) is None
    trainer.global_step, trainer.callbacks[0].elapsed = 2, 35.0
    loops.on_train_batch_start(trainer, module, None, 0)
    assert module.network.looping
    assert phase_of(trainer) == "loops"
    trainer.global_step = 5
    loops.on_train_batch_start(trainer, module, None, 0)
    assert loops.summary(trainer) == {"loops_start_step": 2, "loops_start_seconds": 35.0}


def test_it_never_switches_within_a_step(module: GPTModule) -> None:
    loops = Loops(start_fraction=0.5)
    trainer = trainer_with(loops, module, elapsed=60, accumulate_grad_batches=4)
    loops.on_train_start(trainer, module)
    loops.on_train_batch_start(trainer, module, None, 1)
    assert not module.network.looping


def test_a_resumed_run_goes_on_looping(module: GPTModule) -> None:
    loops = Loops(start_fraction=0.5)
    loops.on_train_batch_start(trainer_with(loops, module, elapsed=60, global_step=7), module, None, 0)
    resumed, other = Loops(start_fraction=0.5), small_module(**LOOP)
    resumed.load_state_dict(loops.state_dict())
    resumed.on_train_start(trainer_with(resumed, other, elapsed=70), other)
    assert other.network.looping
    assert resumed.summary(trainer_with(resumed, other)) == {"loops_start_step": 7, "loops_start_seconds": 60}


def test_what_is_exported_loops_and_a_switch_that_never_came_is_said(module: GPTModule) -> None:
    loops = Loops(start_fraction=0.5)
    trainer = trainer_with(loops, module, elapsed=40)
    loops.on_train_start(trainer, module)
    loops.on_train_batch_start(trainer, module, None, 0)
    loops.on_train_end(trainer, module)
    assert module.network.looping
    assert loops.missed(trainer) == [
        "the loop never began: no step started at or beyond loops.start_fraction 0.5 of the budget, of which the run "
        "spent 40%, but the exported network loops"
    ]


def test_a_network_without_a_loop_is_left_alone() -> None:
    module, loops = small_module(), Loops(start_fraction=0.0)
    trainer = trainer_with(loops, module, elapsed=50)
    loops.on_train_start(trainer, module)
    loops.on_train_batch_start(trainer, module, None, 0)
    loops.on_train_end(trainer, module)
    assert not module.network.looping
    assert (loops.missed(trainer), loops.summary(trainer), loops.metrics(trainer)) == ([], {}, {})
    assert not loops.variants(trainer, module)


def test_the_variant_is_the_looped_network_and_is_scored_too(module: GPTModule) -> None:
    loops = Loops(start_fraction=0.5)
    loops.on_train_start(trainer_with(loops, module), module)
    [variant] = loops.variants(trainer_with(loops, module), module)
    inputs, targets = random_ids(1, 8, seed=1), random_ids(1, 8, seed=2)
    plain = module.network(inputs, targets)
    with variant.applied():
        looped = module.network(inputs, targets)
    assert variant.scored
    assert not torch.equal(plain, looped)
    assert torch.equal(plain, module.network(inputs, targets))
    assert not Loops(start_fraction=0.0).variants(trainer_with(loops, module), module)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_of_the_budget_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=rf"loops\.start_fraction is {share}; set a share of the budget"):
        Loops(start_fraction=share)


def test_a_run_loops_from_its_share_on_and_its_artifact_says_so(data_folder: Path, tmp_path: Path) -> None:
    settings = {f"model.{name}": value for name, value in LOOP.items()}
    arguments = fit_arguments(data_folder, tmp_path, **{**NARROW, **settings, "loops.start_fraction": 0.5})
    main([a.replace("--warmup.steps=2", "--warmup.steps=4") for a in arguments])
    summary = summary_of(tmp_path)
    assert summary["loops_start_step"] == 6  # of 12
    assert summary["phases_missed"] == []
    assert [scalars_of(tmp_path, "phase/loops")[step] for step in (6, 7)] == [0, 1]
    assert "loops from step 6" in marks_of(tmp_path, "loops")[6]
    found = read_artifact(summary["artifact"]).settings
    assert found is not None
    assert (found["loop_start"], found["num_loops"]) == (1, 2)
