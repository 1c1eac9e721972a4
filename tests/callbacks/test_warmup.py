"""Warm-up leaves no trace but compiled graphs."""

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback

from callbacks.common import Reporter, Variant
from callbacks.late_qat import LateQAT
from callbacks.warmup import CompileWarmup
from cli import main
from components.errors import UserError
from components.optimizer import CompositeOptimizer
from components.quantization import Nearest
from components.scorer import ScoringPass, SlidingWindows
from components.scoring import WindowLoader
from lightning_modules.gpt import GPTModule
from tests.callbacks.support import MLP_INT5, clock_at, small_module, trainer_of
from tests.support import NARROW, FinishedRun, bytes_by_id, fit_arguments, random_ids


@pytest.fixture(autouse=True)
def _collect_as_before() -> Iterator[None]:
    """Many tests here begin a training and do not end it."""
    gc.unfreeze()
    yield
    gc.unfreeze()


Batch = tuple[torch.Tensor, torch.Tensor]


def scoring_pass(stride: int = 16) -> ScoringPass:
    windows = WindowLoader(
        random_ids(100),
        bytes_by_id(torch.ones(1024, dtype=torch.int64)),
        seq_len=16,
        stride=stride,
        windows_per_batch=2,
        device=torch.device("cpu"),
    )
    return ScoringPass(windows, SlidingWindows(), "scoring")


class Made(Reporter):
    """A technique with one variant, which validations see too."""

    def __init__(self) -> None:
        self.on = False

    def variants(self, trainer: Any, pl_module: Any) -> list[Variant]:
        return [Variant("this", self.applied, scored=True)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        self.on = True
        yield
        self.on = False


def trainer_with(
    module: GPTModule,
    optimizer: CompositeOptimizer,
    stride: int = 16,
    callbacks: Sequence[Callback] = (),
    max_seconds: float = 0,
    **settings: Any,
) -> SimpleNamespace:
    """A trainer whose strategy runs the module's own steps, and whose data has examples and nothing else to read."""
    example = random_ids(2, 16, seed=1), random_ids(2, 16, seed=2)
    trainer = trainer_of(
        [clock_at(max_seconds=max_seconds), LateQAT(rules=MLP_INT5), *callbacks],
        optimizers=[optimizer],
        datamodule=SimpleNamespace(
            example_batch=lambda device: example,
            example_pass=lambda: scoring_pass(stride),
            train_batch_tokens=786_432,
        ),
        **settings,
    )
    trainer.strategy.training_step = module.training_step
    trainer.strategy.validation_step = module.validation_step
    module.trainer = trainer
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


def test_steps_are_shared_out_over_every_combination_of_variants() -> None:
    module = small_module()
    made = Made()
    trainer = trainer_with(module, module.configure_optimizers(), callbacks=[made])
    trained, scored = [], []

    def note(_: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        (trained if module.network.training else scored).append((module.network.is_faking, made.on))

    module.network.register_forward_pre_hook(note)
    CompileWarmup(steps=9).on_train_start(trainer, module)
    forms = [(False, False), (True, False), (False, True), (True, True)]
    assert [trained.count(form) for form in forms] == [2, 2, 2, 3]
    assert set(scored) == {(False, False), (False, True)}  # validations never see fake quantization
    assert not module.network.is_faking
    assert not made.on


@pytest.mark.parametrize(("stride", "shapes"), [(16, {(2, 16)}), (4, {(1, 16), (2, 4)})])
def test_batches_of_every_shape_are_scored(stride: int, shapes: set[tuple[int, int]]) -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers(), stride)
    scored = set()

    def note(_: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        if not module.network.training:
            assert not torch.is_grad_enabled()  # as in the trainer's validation loop, or it would be another graph
            scored.add(tuple(inputs[1].shape))

    module.network.register_forward_pre_hook(note)
    CompileWarmup(steps=2).on_train_start(trainer, module)
    assert scored == shapes


def test_no_warmup_makes_no_step() -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers())
    trainer.strategy.training_step = None  # not to be called
    CompileWarmup(steps=0).on_train_start(trainer, module)
    assert not module.configure_optimizers().state_dict()["state"]


def test_fewer_steps_than_graphs_are_refused() -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers(), callbacks=[Made()])
    with pytest.raises(
        UserError, match=r"warmup\.steps is 3, .* 4 graphs to compile, with and without late QAT and this"
    ):
        CompileWarmup(steps=3).on_train_start(trainer, module)


def test_a_run_of_one_graph_needs_one_step() -> None:
    module = small_module()
    trainer = trainer_with(module, optimizer := module.configure_optimizers())
    trainer.callbacks = [clock_at(), LateQAT(start_fraction=1)]
    trainer.strategy.training_step = Mock(side_effect=module.training_step)
    CompileWarmup(steps=1).on_train_start(trainer, module)
    trainer.strategy.training_step.assert_called_once()
    assert not optimizer.state_dict()["state"]


def slow_steps(module: GPTModule, monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> None:
    """Let forward and backward passes take these times in turn."""
    now, left = [0.0], list(seconds)
    monkeypatch.setattr("callbacks.warmup.time.perf_counter", lambda: now[0])

    def note(*_: Any) -> None:
        if module.network.training:
            now[0] += left.pop(0)

    module.network.register_forward_pre_hook(note)


def test_it_shows_which_step_it_is_at(capfd: pytest.CaptureFixture[str]) -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers(), progress_bar_callback=object())
    CompileWarmup(steps=3).on_train_start(trainer, module)
    shown = capfd.readouterr().err
    assert [f"warming up {i} of 3" in shown for i in range(1, 5)] == [True, True, True, False]
    trainer.is_global_zero = False
    CompileWarmup(steps=3).on_train_start(trainer, module)
    assert "of 3" not in capfd.readouterr().err


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_too_slow_for_the_budget_is_a_warning_at_once(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module()
    module.compiled = compiled
    trainer = trainer_with(module, module.configure_optimizers(), max_seconds=20, accumulate_grad_batches=8)
    # 8 micro-batches of 35 s. The first pass of each of the two graphs may have compiled it.
    slow_steps(module, monkeypatch, [35, 35, 35, 35])
    warned_at = []
    monkeypatch.setattr(
        "callbacks.warmup.rank_zero_warn",
        lambda sentence: warned_at.append((sentence, trainer.strategy.training_step.call_count)),
    )
    trainer.strategy.training_step = Mock(side_effect=module.training_step)
    CompileWarmup(steps=4).on_train_start(trainer, module)
    torch.compiler.set_stance("default")
    [(sentence, num_steps)] = warned_at
    assert num_steps == (2 if compiled else 1)
    assert "A training step takes about 280 s" in sentence
    assert "the budget of 20 s: make data.train_batch_tokens (786,432) or the network smaller" in sentence


@pytest.mark.parametrize(("max_seconds", "seconds"), [(600, 7.4), (0, 1000)])
def test_a_step_that_fits_the_budget_is_none(
    max_seconds: float, seconds: float, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers(), max_seconds=max_seconds, accumulate_grad_batches=8)
    slow_steps(module, monkeypatch, [seconds] * 2)
    CompileWarmup(steps=2).on_train_start(trainer, module)
    assert not [w for w in recwarn if "training step" in str(w.message)]


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup\.steps is -1"):
        CompileWarmup(steps=-1)


def test_a_run_trains_on_the_same_ids_to_the_same_weights_without_it(finished_run: FinishedRun, tmp_path: Path) -> None:
    cli = main(fit_arguments(finished_run.data, tmp_path, **NARROW, **{"warmup.steps": 0}))
    assert_same(cli.model.state_dict(), finished_run.cli.model.state_dict())
    assert cli.datamodule.state_dict() == finished_run.cli.datamodule.state_dict()


def test_afterward_every_graph_of_a_run_is_compiled_and_another_is_an_error() -> None:
    torch.compiler.reset()
    stride = 4  # under the window, so that validations during the run have batches of two shapes
    module = small_module(num_layers=1)
    # What is traced and guarded is the same with the real backend, which needs a compiler and a minute more.
    module.compiled = True
    module.network.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    optimizer = module.configure_optimizers()
    trainer = trainer_with(module, optimizer, stride)
    warmup = CompileWarmup(steps=2)
    warmup.on_train_start(trainer, module)

    batch = random_ids(2, 16, seed=3), random_ids(2, 16, seed=4)
    float_loss = train_step(module, optimizer, batch)
    module.network.enable_fake_quantization(MLP_INT5, Nearest())
    quantized_loss = train_step(module, optimizer, batch)
    assert quantized_loss != float_loss
    module.network.disable_fake_quantization()
    module.eval()
    with torch.no_grad():
        assert module.validation_step(scoring_pass(stride), 0).num_tokens == 99
    module.train()
    train_step(module, optimizer, batch)
    longer = random_ids(2, 24, seed=3), random_ids(2, 24, seed=4)
    with pytest.raises(RuntimeError, match="recompile"):
        train_step(module, optimizer, longer)

    warmup.on_train_end(trainer, module)
    assert torch.isfinite(train_step(module, optimizer, longer))


@pytest.mark.parametrize("steps", [0, 2])
def test_the_collector_leaves_alone_what_there_was_before_training_until_it_ends(steps: int) -> None:
    module = small_module()
    trainer = trainer_with(module, module.configure_optimizers())
    warmup = CompileWarmup(steps=steps)
    for end in (warmup.on_train_end, lambda *arguments: warmup.on_exception(*arguments, RuntimeError())):
        warmup.on_train_start(trainer, module)
        assert gc.get_freeze_count() > 10_000
        end(trainer, module)
        assert gc.get_freeze_count() == 0


def test_an_error_leaves_the_process_free_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    stances = []
    monkeypatch.setattr("torch.compiler.set_stance", stances.append)
    CompileWarmup().on_exception(trainer_of(), small_module(), RuntimeError())
    assert stances == ["default"]
