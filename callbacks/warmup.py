"""Compile everything before the clock starts, and put the run's state back as it was."""

from __future__ import annotations

import copy
import itertools

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.common import data_of, find, network_of
from callbacks.late_qat import LateQAT
from components.errors import UserError


class CompileWarmup(Callback):
    """Run whole training steps on made-up ids, plain and under fake quantization, and scoring batches.

    Afterward weights and optimizer state are what they were, no token of the stream has been read, and a graph that
    would still have to be compiled during the run is an error, not a stall.

    Args:
        steps: Optimizer steps of warm-up, half of them plain and half under fake quantization; 0 for none.
    """

    def __init__(self, steps: int = 20) -> None:
        super().__init__()
        if steps < 0 or steps == 1:
            raise UserError(f"warmup.steps is {steps}; set it to 0 for none or to at least 2, one for each graph.")
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warm up, put the state back, and refuse later compilation."""
        if not self.steps:
            return
        [optimizer] = trainer.optimizers
        parameters: list[torch.Tensor] = list(pl_module.parameters())
        saved_parameters = [p.detach().clone() for p in parameters]
        saved_optimizer = copy.deepcopy(optimizer.state_dict())
        late_qat = find(trainer, LateQAT)
        batch = data_of(trainer).example_batch(pl_module.device)
        for step in range(self.steps):
            if step == self.steps // 2:
                network_of(pl_module).enable_fake_quantization(late_qat.keep_last_k_fp16)
            loss = trainer.strategy.training_step(batch, 0)
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        network_of(pl_module).disable_fake_quantization()
        self._warm_scoring(trainer, pl_module)
        with torch.no_grad():
            torch._foreach_copy_(parameters, saved_parameters)
        optimizer.load_state_dict(saved_optimizer)
        if pl_module.compiled:
            torch.compiler.set_stance("fail_on_recompile")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let what follows the run compile what it needs."""
        torch.compiler.set_stance("default")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the process as it was."""
        torch.compiler.set_stance("default")

    @torch.no_grad()
    def _warm_scoring(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.eval()
        # The first window may have a shape of its own; from the second batch on all are alike.
        for i, batch in enumerate(itertools.islice(data_of(trainer).val_dataloader(), 2)):
            trainer.strategy.validation_step(batch, i)
        pl_module.train()
