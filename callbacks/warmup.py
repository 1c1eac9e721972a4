"""Compile everything before the clock starts, and restore the run's state."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.common import Stage, Variant, data_of, reporters
from components.errors import UserError


class CompileWarmup(Callback):
    """Run whole training steps and scoring passes on dummy ids, in every form that a technique will give the network.

    Afterward weights and optimizer state are restored, and no token of the data has been read. A graph that still has
    to be compiled during the run is then an error, not a stall. Until training ends, the garbage collector leaves alone
    what the process holds by then: going through all of it on one rank would stall every rank.

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
        for i, form in enumerate(forms):
            with _applied(form):
                for _ in range(i * self.steps // len(forms), (i + 1) * self.steps // len(forms)):
                    loss = trainer.strategy.training_step(batch, 0)
                    assert isinstance(loss, torch.Tensor)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
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
