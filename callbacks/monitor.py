"""What loggers get of a run as it trains, and the end of a run whose loss or gradient is no longer finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import data_of, ends_step, find, log_metrics, mean_over_ranks, reporters
from components.errors import UserError


@dataclass(frozen=True)
class _Step:
    """A step that nobody has looked at yet: its values are still on the device.

    Attributes:
        number: optimizer steps so far, this one included.
        loss: mean over the rank's micro-batches, in nats, a scalar.
        gradient_norm: norm over all weights before clipping, a scalar, the same on every rank.
        rates: each optimizer group's learning rate.
    """

    number: int
    loss: Tensor
    gradient_norm: Tensor
    rates: dict[str, float]


class Monitor(Callback):
    """Log every ``trainer.log_every_n_steps`` optimizer steps; only then does the host wait for the device.

    At the same moment it looks at the loss and the gradient norm of every step since the last time, and ends the run
    if one of them is not finite. Loss, tokens per second, the gradient's norm, every reporter's metrics and, as text,
    events go to TensorBoard.

    ``loss`` is the last logged training loss: the mean over a step's micro-batches and all ranks, in nats. ``metrics``
    are all that was logged at that step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self._step_loss: Tensor | None = None
        self._unseen: list[_Step] = []
        self._last = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the current step."""
        self._last = (trainer.global_step, find(trainer, Clock).elapsed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Accumulate a step's loss on the device, and look at it if that is due.

        Raises:
            UserError: The loss or the gradient norm of a step since the last look is not finite.
        """
        micro_loss = outputs["loss"]  # already divided by the number of micro-batches
        self._step_loss = micro_loss if self._step_loss is None else self._step_loss + micro_loss
        if not ends_step(trainer, batch_idx):
            return
        norm = pl_module.gradient_norm
        assert isinstance(norm, Tensor)
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        self._unseen.append(_Step(trainer.global_step, self._step_loss, norm, rates))
        self._step_loss = None
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.loss, norm_of_step = self._look(trainer, mean_over_ranks(self._stacked()))
            self._log(trainer, self.loss, norm_of_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the steps since the last logged one, before they are scored.

        Raises:
            UserError: The loss or the gradient norm of one of them is not finite.
        """
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the steps after the last logged one, before the run's result is made from them.

        Raises:
            UserError: The loss or the gradient norm of one of them is not finite.
        """
        if self._unseen:
            self._look(trainer, mean_over_ranks(self._stacked()))

    def check(self, trainer: Trainer) -> None:
        """Look at this rank's losses and the gradient norms, which all ranks share, without asking other ranks.

        Raises:
            UserError: One of them is not finite.
        """
        if self._unseen:
            self._look(trainer, self._stacked())

    def _stacked(self) -> Tensor:
        """Losses and gradient norms of the steps nobody has looked at, [2, steps]."""
        losses, norms = ([step.loss for step in self._unseen], [step.gradient_norm for step in self._unseen])
        return torch.stack([*losses, *norms]).view(2, -1)

    def _look(self, trainer: Trainer, values: Tensor) -> tuple[float, float]:
        """Wait for the device, and return the last step's loss and gradient norm."""
        steps, self._unseen = self._unseen, []
        losses, norms = values.tolist()
        for step, loss, norm in zip(steps, losses, norms, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                go_on = find(trainer, Checkpoints).how_to_go_on()
                raise UserError(f"{_not_finite(step, loss, norm)}; lower them, and {go_on}.")
        return losses[-1], norms[-1]

    def _log(self, trainer: Trainer, loss: float, gradient_norm: float) -> None:
        elapsed = find(trainer, Clock).elapsed
        last_step, last_elapsed = self._last
        self._last = (trainer.global_step, elapsed)
        metrics = {
            "loss/train": loss,
            "optimizer/gradient_norm": gradient_norm,
            "speed/epoch_of_data": data_of(trainer).epoch,
        }
        if elapsed > last_elapsed:
            tokens = (trainer.global_step - last_step) * data_of(trainer).train_batch_tokens
            metrics["speed/tokens_per_second"] = tokens / (elapsed - last_elapsed)
        for reporter in reporters(trainer):
            metrics |= reporter.metrics(trainer)
        self.metrics = metrics
        log_metrics(trainer, metrics)


def _not_finite(step: _Step, loss: float, gradient_norm: float) -> str:
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in step.rates.items())
    return (
        f"The loss is {loss} and the gradient norm {gradient_norm} at step {step.number}, with learning rates {rates}"
    )
