"""Compile everything before the clock starts, and restore the run's state."""

from __future__ import annotations

import copy
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tqdm import tqdm

from callbacks.clock import Clock
from callbacks.common import Stage, Variant, data_of, find, reporters
from components.errors import UserError

SLOW_STEP = 0.1
"""A step that takes more than this share of the budget is worth a warning."""


class CompileWarmup(Callback):
    """Run whole training steps and scoring passes on dummy ids, in every form that a technique will give the network.

    Afterward weights and optimizer state are restored, and no token of the data has been read. A graph that still has
    to be compiled during the run is then an error, not a stall. A step too slow for the budget is a warning as soon as
    the first one has been timed. Until training ends, the garbage collector leaves alone what the process holds by
    then: going through all of it on one rank would stall every rank.

    Args:
        steps: Optimizer steps of warm-up, divided equally among the forms of the network; 0 for none.
    """

    stage = Stage.WARMUP

    def __init__(self, steps: int = 20) -> None:
        super().__init__()
        if steps < 0:
            raise UserError(f"warmup.steps is {steps}; set it to 0 for none or to a number of steps.")
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warm up, restore the state, and forbid later compilation.

        Raises:
            UserError: There are fewer steps than graphs to compile.
        """
        if self.steps:
            self._warm_up(trainer, pl_module)
        gc.collect()
        gc.freeze()

    def _warm_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        variants = [v for reporter in reporters(trainer) for v in reporter.variants(trainer, pl_module)]
        forms = _combinations(variants)
        if self.steps < len(forms):
            names = " and ".join(variant.name for variant in variants)
            raise UserError(
                f"warmup.steps is {self.steps}, and the run has {len(forms)} graphs to compile, with and without "
                f"{names}; set it to 0 for none or to at least {len(forms)}."
            )
        [optimizer] = trainer.optimizers
        parameters: list[torch.Tensor] = list(pl_module.parameters())
        saved_parameters = [p.detach().clone() for p in parameters]
        saved_optimizer = copy.deepcopy(optimizer.state_dict())
        batch = data_of(trainer).example_batch(pl_module.device)
        shows_progress = trainer.is_global_zero and trainer.progress_bar_callback is not None
        has_warned = False
        with tqdm(total=self.steps, bar_format="{desc} |{bar}|", leave=False, disable=not shows_progress) as bar:
            for i, form in enumerate(forms):
                first, end = i * self.steps // len(forms), (i + 1) * self.steps // len(forms)
                with _applied(form):
                    for step in range(first, end):
                        bar.set_description_str(f"warming up {step + 1} of {self.steps}")
                        seconds = _timed_step(trainer, pl_module, batch)
                        bar.update()
                        compiled = pl_module.compiled and step == first  # most of its time went into compilation
                        if not has_warned and not compiled:
                            has_warned = _warn_if_slow(trainer, step + 1, seconds)
        for form in _combinations([variant for variant in variants if variant.scored]):
            with _applied(form):
                _score(trainer, pl_module)
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved_parameters)
        optimizer.load_state_dict(saved_optimizer)
        if pl_module.compiled:
            torch.compiler.set_stance("fail_on_recompile")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allow compilation again after training, and collect garbage as before."""
        _relax()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Do the same after an error."""
        _relax()


def _relax() -> None:
    torch.compiler.set_stance("default")
    gc.unfreeze()


def _warn_if_slow(trainer: Trainer, step: int, seconds: float) -> bool:
    budget = find(trainer, Clock).max_seconds
    is_slow = 0 < SLOW_STEP * budget < seconds
    if is_slow:
        rank_zero_warn(
            f"A training step takes about {seconds:.3g} s, by step {step} of the warm-up, which is over a tenth of "
            f"the budget of {budget:g} s: make data.train_batch_tokens ({data_of(trainer).train_batch_tokens:,}) "
            "or the network smaller, or raise clock.max_seconds."
        )
    return is_slow


def _timed_step(trainer: Trainer, pl_module: LightningModule, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Take a step on one micro-batch; returns the seconds that a step on all of its micro-batches would take."""
    [optimizer] = trainer.optimizers
    started = time.perf_counter()
    loss = trainer.strategy.training_step(batch, 0)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    _wait_for(pl_module.device)
    in_between = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    _wait_for(pl_module.device)
    return trainer.accumulate_grad_batches * (in_between - started) + time.perf_counter() - in_between


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _combinations(variants: Sequence[Variant]) -> list[tuple[Variant, ...]]:
    """Every combination of variants that a run may use, the plain network first."""
    return [form for size in range(len(variants) + 1) for form in itertools.combinations(variants, size)]


@contextmanager
def _applied(form: Sequence[Variant]) -> Iterator[None]:
    with ExitStack() as stack:
        for variant in form:
            stack.enter_context(variant.applied())
        yield


def _score(trainer: Trainer, pl_module: LightningModule) -> None:
    pl_module.eval()
    trainer.strategy.validation_step(data_of(trainer).example_pass(), 0)
    pl_module.train()
