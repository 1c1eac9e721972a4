"""Warm-up leaves no trace but compiled graphs."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks.late_qat import LateQAT
from callbacks.warmup import CompileWarmup
from cli import main
from components.errors import UserError
from components.optimizer import CompositeOptimizer
from components.quantization import Storage
from components.scoring import WindowLoader
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import NARROW, WIDE, FinishedRun, small_module, trainer_of
from tests.support import bytes_by_id, fit_arguments, random_ids

Batch = tuple[torch.Tensor, torch.Tensor]


def windows(stride: int = 16) -> WindowLoader:
    return WindowLoader(
        random_ids(100),
        bytes_by_id(torch.ones(1024, dtype=torch.int64)),
        seq_len=16,
        stride=stride,
        windows_per_batch=2,
        device=torch.device("cpu"),
    )


def trainer_with(module: GPTModule, optimizer: CompositeOptimizer, stride: int = 16) -> SimpleNamespace:
    """A trainer whose strategy runs the module's own steps, on data that would fail a test that read the stream."""
    example = random_ids(2, 16, seed=1), random_ids(2, 16, seed=2)
    trainer = trainer_of(
        [LateQAT()],
        optimizers=[optimizer],
        datamodule=SimpleNamespace(example_batch=lambda device: example, val_dataloader=lambda: windows(stride)),
    )
    trainer.strategy.training_step = module.training_step
    trainer.strategy.validation_step = module.validation_step
    return trainer


def train_step(module: GPTModule, optimizer: CompositeOptimizer, batch: Batch) -> torch.Tensor:
    loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def assert_same(left: object, right: object) -> None:
    """Bit for bit, down through dicts and lists."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


@pytest.mark.parametrize("steps_before", [0, 3])
def test_weights_and_optimizer_state_are_as_they_were(steps_before: int) -> None:
    module = small_module()
    optimizer = module.configure_optimizers()
    for seed in range(steps_before):
        train_step(module, optimizer, (random_ids(2, 16, seed=seed), random_ids(2, 16, seed=seed + 10)))
    weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(optimizer.state_dict())
    assert bool(state["state"]) == bool(steps_before)
    CompileWarmup(steps=4).on_train_start(trainer_with(module, optimizer), module)
    assert_same(module.state_dict(), weights)
    assert_same(optimizer.state_dict(), state)
    assert all(p.grad is None for p in module.parameters())
    assert module.training


def test_training_goes_on_as_if_it_had_not_happened() -> None:
    batch = random_ids(2, 16, seed=3), random_ids(2, 16, seed=4)
    losses = []
    for steps in (0, 4):
        module = small_module()
        optimizer = module.configure_optimizers()
        CompileWarmup(steps=steps).on_train_start(trainer_with(module, optimizer), module)
        losses.append([train_step(module, optimizer, batch) for _ in range(3)])
    assert_same(*losses)


def test_half_of_the_steps_run_under_fake_quantization() -> None:
    module = small_module(**WIDE)
    optimizer = module.configure_optimizers()
    trainer = trainer_with(module, optimizer)
    seen = []

    def training_step(batch: Batch, batch_idx: int) -> torch.Tensor:
        seen.append(module.network.blocks[0].mlp.fc.fake_storage)
        return module.training_step(batch, batch_idx)

    trainer.strategy.training_step = training_step
    CompileWarmup(steps=4).on_train_start(trainer, module)
    assert seen == [Storage.FLOAT16] * 2 + [Storage.INT5] * 2
    assert module.network.blocks[0].mlp.fc.fake_storage == Storage.FLOAT16


def test_no_warmup_makes_no_step() -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers())
    trainer.strategy.training_step = None  # not to be called
    CompileWarmup(steps=0).on_train_start(trainer, module)
    assert not module.configure_optimizers().state_dict()["state"]


@pytest.mark.parametrize("steps", [-1, 1])
def test_too_few_steps_for_both_graphs_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=rf"warmup\.steps is {steps}"):
        CompileWarmup(steps=steps)


def test_a_run_trains_on_the_same_ids_to_the_same_weights_without_it(finished_run: FinishedRun, tmp_path: Path) -> None:
    cli = main(fit_arguments(finished_run.data, tmp_path, **NARROW, **{"warmup.steps": 0}))
    assert_same(cli.model.state_dict(), finished_run.cli.model.state_dict())
    assert cli.datamodule.state_dict() == finished_run.cli.datamodule.state_dict()


def test_afterwards_every_graph_of_a_run_is_compiled_and_another_is_an_error() -> None:
    torch.compiler.reset()
    stride = 4  # under the window, so that validations during the run have batches of two shapes
    module = small_module(**{**WIDE, "num_layers": 1})
    # What is traced and guarded is the same with the real backend, which needs a compiler and a minute more.
    module.compiled = True
    module.network.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    optimizer = module.configure_optimizers()
    trainer = trainer_with(module, optimizer, stride)
    warmup = CompileWarmup(steps=2)
    warmup.on_train_start(trainer, module)

    batch = random_ids(2, 16, seed=3), random_ids(2, 16, seed=4)
    float_loss = train_step(module, optimizer, batch)
    module.network.enable_fake_quantization(keep_last_k_fp16=1)
    quantized_loss = train_step(module, optimizer, batch)
    assert quantized_loss != float_loss
    module.network.disable_fake_quantization()
    module.eval()
    with torch.no_grad():
        nats = [module.validation_step(batch, i) for i, batch in enumerate(windows(stride))]
    assert len(nats) > 2
    module.train()
    train_step(module, optimizer, batch)
    longer = random_ids(2, 24, seed=3), random_ids(2, 24, seed=4)
    with pytest.raises(RuntimeError, match="recompile"):
        train_step(module, optimizer, longer)

    warmup.on_train_end(trainer, module)
    assert torch.isfinite(train_step(module, optimizer, longer))
