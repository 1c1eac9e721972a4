"""What callbacks ask of a run, and the protocol by which each tells the others what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from components.gpt import GPT
from components.scorer import ScoringPass

CallbackType = TypeVar("CallbackType", bound=Callback)


class Stage(IntEnum):
    """When a callback is called among the others; see `in_order`."""

    WARMUP = 0
    """Before the clock starts."""
    CLOCK = 1
    SCHEDULE = 2
    TECHNIQUE = 3
    """What changes how the network trains or what is exported."""
    OBSERVER = 4
    """What only reports; a callback that declares no stage is one."""
    CHECKPOINT = 5


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        tag: what kind of event it is, such as "late QAT".
        sentence: what happened, for a line of the log.
    """

    tag: str
    sentence: str


@dataclass(frozen=True)
class Variant:
    """A form that a technique gives the network in the course of a run: another graph to compile before the clock.

    Attributes:
        name: what it is called.
        applied: gives the network that form while the context lasts.
        scored: whether validations see it too, not only training steps.
    """

    name: str
    applied: Callable[[], AbstractContextManager[None]]
    scored: bool = False


class Reporter(Callback):
    """A callback that tells the run's observers what it does, whatever it is.

    Every method has a default that says nothing. Observers ask all reporters, and know none of them by name.
    """

    stage: Stage = Stage.TECHNIQUE

    def phase(self, trainer: Trainer) -> str | None:
        """The phase that it has put the run in, if it has; of several reporters' the last one's shows."""
        return None

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """What a dashboard shows of it at a logged step, by tag."""
        return {}

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """Facts for the run's summary, JSON values by field."""
        return {}

    def missed(self, trainer: Trainer) -> list[str]:
        """Phases that the run was too short for, a sentence each, without its full stop."""
        return []

    def describe(self, trainer: Trainer) -> list[str]:
        """Sentences on what it did to the model, for a reader of the run."""
        return []

    def variants(self, trainer: Trainer, pl_module: LightningModule) -> Sequence[Variant]:
        """The forms that it will give the network."""
        return ()


class EventListener(Protocol):
    """A callback that wants to know of events."""

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Take note of an event, on every rank, when it happens."""


class RunData(Protocol):
    """The data module, as callbacks know it."""

    train_batch_tokens: int

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""

    def final_pass(self, title: str) -> ScoringPass:
        """The scoring that gives a run's result."""

    def example_pass(self) -> ScoringPass:
        """A scoring of made-up ids, with a batch of every shape that validations have."""

    def summary(self) -> dict[str, Any]:
        """The run's record of what it read."""

    def example_batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A made-up micro-batch."""


def announce(trainer: Trainer, tag: str, sentence: str) -> None:
    """Tell every callback that listens of an event."""
    for callback in callbacks_of(trainer):
        if hasattr(callback, "on_event"):
            cast(EventListener, callback).on_event(trainer, Event(tag, sentence))


def reporters(trainer: Trainer) -> Iterator[Reporter]:
    """The callbacks that report, in the order in which they are called."""
    return (callback for callback in callbacks_of(trainer) if isinstance(callback, Reporter))


def phase_of(trainer: Trainer) -> str:
    """The phase that the run is in."""
    phases = [phase for reporter in reporters(trainer) if (phase := reporter.phase(trainer)) is not None]
    return phases[-1] if phases else "training"


def stage_of(callback: Callback) -> Stage:
    """When a callback is called; checkpoints come last, so that they save what all others did."""
    return Stage.CHECKPOINT if isinstance(callback, Checkpoint) else getattr(callback, "stage", Stage.OBSERVER)


def in_order(callbacks: Sequence[Callback]) -> list[Callback]:
    """Callbacks by stage; within a stage in the order given."""
    return sorted(callbacks, key=stage_of)


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
