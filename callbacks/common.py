"""What several callbacks ask of a run."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from components.gpt import GPT
from components.scoring import ScoringConfig, WindowLoader

CallbackType = TypeVar("CallbackType", bound=Callback)


class StreamPosition(Protocol):
    """The train loader, as callbacks know it."""

    epoch: float

    def __iter__(self) -> Iterator[Any]: ...


class RunData(Protocol):
    """The data module, as callbacks know it."""

    train_batch_tokens: int
    scoring: ScoringConfig

    def train_dataloader(self) -> StreamPosition:
        """This rank's micro-batches."""

    def val_dataloader(self) -> WindowLoader:
        """This rank's windows for the validation loop."""

    def windows(self, stride: int) -> WindowLoader:
        """This rank's windows at a stride."""

    def summary(self) -> dict[str, Any]:
        """The run's record of what it read."""

    def example_batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A made-up micro-batch."""


def data_of(trainer: Trainer) -> RunData:
    """The run's data module."""
    return cast(RunData, trainer.datamodule)  # type: ignore[attr-defined]


def network_of(pl_module: LightningModule) -> GPT:
    """The run's network, without what wraps it."""
    assert isinstance(pl_module.network, GPT)
    return pl_module.network


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All of the run's callbacks, in the order in which they are called."""
    return trainer.callbacks  # type: ignore[attr-defined]


def find(trainer: Trainer, kind: type[CallbackType]) -> CallbackType:
    """The trainer's one callback of a kind."""
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, kind)]
    assert len(found) == 1, f"a run has one {kind.__name__}, this one {len(found)}"
    return found[0]


def starts_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the first of its optimizer step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
