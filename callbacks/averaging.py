"""Averaging of the weights over a run: the average is the final model."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Reporter, announce, ends_step, find, network_of
from callbacks.schedule import Schedule
from components.averages import Average, Moment
from components.errors import UserError


class Averaging(Reporter):
    """Offer an average the weights of every step, and leave its value in the network when training ends.

    A checkpoint holds the last weights, to train on from, and the average so far. Validated, it is its average.

    Args:
        average: What is averaged, and how.
        last_weights: Whether ``validate`` scores a checkpoint's last weights instead of their average.
    """

    def __init__(self, average: Average, last_weights: bool = False) -> None:
        super().__init__()
        self.average = average
        self.last_weights = last_weights

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring what a resumed run gathered to where its parameters are."""
        self.average.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights of a step where that is due."""
        if not ends_step(trainer, batch_idx):
            return
        network = network_of(pl_module)
        moment = Moment(trainer.global_step, find(trainer, Schedule).multiplier, network.is_faking)
        if self.average.is_due(moment):
            words = self.average.add(dict(network.named_parameters()))
            if words is not None:
                announce(trainer, "averaging", f"{words} at step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the network."""
        self._apply(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let ``validate`` score a checkpoint's average."""
        if trainer.state.fn == TrainerFn.VALIDATING and not self.last_weights:
            self._apply(pl_module)

    @torch.no_grad()
    def _apply(self, pl_module: LightningModule) -> None:
        value = self.average.value()
        if value is not None:
            for name, p in network_of(pl_module).named_parameters():
                p.copy_(value[name])

    def state_dict(self) -> dict[str, Any]:
        """What was gathered, and by what."""
        return {"kind": type(self.average).__name__, "average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: The checkpoint's average is of another kind.
        """
        kind = type(self.average).__name__
        if state_dict["kind"] != kind:
            raise UserError(
                f"The checkpoint holds an average by {state_dict['kind']} and the configuration asks for {kind}; give "
                f"--averaging {state_dict['kind']}."
            )
        self.average.load_state_dict(state_dict["average"])

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """What the average shows."""
        return self.average.metrics()

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """What the average says of itself."""
        return self.average.summary()

    def missed(self, trainer: Trainer) -> list[str]:
        """What the average says did not happen."""
        sentence = self.average.missed()
        return [] if sentence is None else [sentence]

    def describe(self, trainer: Trainer) -> list[str]:
        """What the average did."""
        sentence = self.average.describe()
        return [] if sentence is None else [sentence]
