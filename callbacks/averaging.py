"""Weight averaging over a run: the average becomes the final model."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.common import Reporter, announce, ends_step, find, log_metrics, network_of
from callbacks.schedule import Schedule
from callbacks.scoring import score_as_validation
from components.averages import Average, Moment
from components.errors import UserError
from components.scoring import Score


class Averaging(Reporter):
    """Update an average of the weights during training, and load it into the network when training ends.

    Both are scored as validations are, and an average that scores worse than the last weights is a warning. A
    checkpoint holds the last weights, from which training resumes, and the average so far, which ``validate`` scores.

    Args:
        average: The average to keep.
        last_weights: Whether ``validate`` scores a checkpoint's last weights instead of their average.
    """

    def __init__(self, average: Average, last_weights: bool = False) -> None:
        super().__init__()
        self.average = average
        self.last_weights = last_weights
        self._scores: dict[str, Score] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average of a resumed run to the parameters' device, and show it the weights it starts from."""
        self.average.to(pl_module.device)
        self.average.start(dict(network_of(pl_module).named_parameters()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a step's weights to the average if that is due."""
        if not ends_step(trainer, batch_idx):
            return
        network = network_of(pl_module)
        moment = Moment(trainer.global_step, find(trainer, Schedule).multiplier, network.is_faking)
        if self.average.is_due(moment):
            words = self.average.add(dict(network.named_parameters()))
            if words is not None:
                announce(trainer, "averaging", f"{words} at step {trainer.global_step}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the average into the network, also where a resumed run had no step left to take, and compare."""
        if self.average.value() is None:
            return
        last = score_as_validation(trainer, pl_module, "scoring the last weights")
        self._apply(pl_module)
        averaged = score_as_validation(trainer, pl_module, "scoring the average")
        self._scores = {"last_weights": last, "averaged": averaged}
        log_metrics(trainer, {f"result/{of}": score.bits_per_byte for of, score in self._scores.items()})
        words = f"last weights {last.bits_per_byte:.6f} bits per byte, averaged {averaged.bits_per_byte:.6f}"
        announce(trainer, "scores", f"in validation's windows: {words}")
        if averaged.bits_per_byte > last.bits_per_byte:
            rank_zero_warn(
                f"Averaging has lost: {words}, in validation's windows. The average is what is exported; to do "
                "better, average fewer of the last steps, or give --averaging null."
            )
        else:
            rank_zero_info(f"In validation's windows: {words}.")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load a checkpoint's average for ``validate`` to score."""
        if trainer.state.fn == TrainerFn.VALIDATING and not self.last_weights:
            self._apply(pl_module)

    @torch.no_grad()
    def _apply(self, pl_module: LightningModule) -> None:
        value = self.average.value()
        if value is not None:
            for name, p in network_of(pl_module).named_parameters():
                p.copy_(value[name])

    @property
    def _kind(self) -> str:
        return f"{type(self.average).__module__}.{type(self.average).__qualname__}"

    def state_dict(self) -> dict[str, Any]:
        """The average's class and state."""
        return {"kind": self._kind, "average": self.average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the average from a checkpoint.

        Raises:
            UserError: The checkpoint's average is of another class.
        """
        if self.last_weights:
            return
        if state_dict["kind"] != self._kind:
            raise UserError(
                f"The checkpoint's average is a {state_dict['kind']}, but the configuration asks for {self._kind}; "
                f"give --averaging {state_dict['kind']}."
            )
        self.average.load_state_dict(state_dict["average"])

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """The average's metrics."""
        return self.average.metrics()

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The average's fields in the run summary."""
        return self.average.summary() | {f"{of}_bpb": score.bits_per_byte for of, score in self._scores.items()}

    def missed(self, trainer: Trainer) -> list[str]:
        """The average's missed phase, if there is one."""
        sentence = self.average.missed()
        return [] if sentence is None else [sentence]

    def describe(self, trainer: Trainer) -> list[str]:
        """The average's description of itself, if there is one."""
        sentence = self.average.describe()
        return [] if sentence is None else [sentence]
