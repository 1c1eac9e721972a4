"""What callbacks need from a run, and the protocol by which each reports what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from components.gpt import GPT
from components.scorer import Scorer, ScoringPass
from components.scoring import ScoringConfig

CallbackType = TypeVar("CallbackType", bound=Callback)


class Stage(IntEnum):
    """A callback's place in the calling order; see `in_order`."""

    WARMUP = 0
    """Before the clock starts."""
    CLOCK = 1
    SCHEDULE = 2
    TECHNIQUE = 3
    """Changes how the network trains or what is exported."""
    EXPORT = 4
    """Takes the network as every technique has left it."""
    OBSERVER = 5
    """Only reports; the default for a callback that declares no stage."""
    CHECKPOINT = 6
    LAST = 7
    """Ends the run, once all the others are done with a step."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes:
        tag: the kind of event, such as "late QAT".
        sentence: what happened, as a line of the log.
    """

    tag: str
    sentence: str


@dataclass(frozen=True)
class Variant:
    """A form that a technique gives the network during a run: another graph to compile before the clock starts.

    Attributes:
        name: its name in messages.
        applied: returns a context in which the network has this form.
        scored: whether validation uses it too, not only training.
    """

    name: str
    applied: Callable[[], AbstractContextManager[None]]
    scored: bool = False


class Reporter(Callback):
    """A callback that reports what it does to the run's observers.

    Every method reports nothing by default. Observers query all reporters and know none of them by name.
    """

    stage: Stage = Stage.TECHNIQUE

    def phase(self, trainer: Trainer) -> str | None:
        """The phase that it has put the run in, if any; observers show the last reporter's phase."""
        return None

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """Values that a dashboard shows at a logged step, by tag; it groups tags by what is before their slash."""
        return {}

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """Fields of the run summary, as JSON values."""
        return {}

    def missed(self, trainer: Trainer) -> list[str]:
        """Phases that the run never reached, one sentence each, without the final period."""
        return []

    def describe(self, trainer: Trainer) -> list[str]:
        """Sentences that tell a reader what it did to the model."""
        return []

    def variants(self, trainer: Trainer, pl_module: LightningModule) -> Sequence[Variant]:
        """The forms that it will give the network, beside the plain one."""
        return ()


class EventListener(Protocol):
    """A callback that listens for events."""

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Handle an event when it happens; called on every rank."""


class RunData(Protocol):
    """The data module as callbacks see it."""

    train_batch_tokens: int
    train_seq_len: int
    scoring: ScoringConfig
    scorer: Scorer
    """What computes the run's result."""
    tokenizer: SentencePieceProcessor

    @property
    def epoch(self) -> float:
        """Passes over the training data so far."""

    def final_pass(self, title: str) -> ScoringPass:
        """The scoring pass that gives the run's result."""

    def validation_pass(self, title: str) -> ScoringPass:
        """The scoring pass of a fit's validations."""

    def validation_prompt(self, num_tokens: int) -> list[int]:
        """The first ids of the validation text, at most so many."""

    def example_pass(self) -> ScoringPass:
        """A scoring pass over dummy ids, with one batch of every shape that validation uses."""

    def summary(self) -> dict[str, Any]:
        """The run summary's fields about the data that was read."""

    def calibration_batches(self, num_batches: int) -> Iterable[Tensor]:
        """Input ids of the run's first micro-batches, this rank's share of so many, on its device."""

    def example_batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A micro-batch of dummy ids."""


def announce(trainer: Trainer, tag: str, sentence: str) -> None:
    """Send an event to every callback that listens for events."""
    for callback in callbacks_of(trainer):
        if hasattr(callback, "on_event"):
            cast(EventListener, callback).on_event(trainer, Event(tag, sentence))


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log values by tag at the current step, to every logger."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def reporters(trainer: Trainer) -> Iterator[Reporter]:
    """The reporters among the callbacks, in calling order."""
    return (callback for callback in callbacks_of(trainer) if isinstance(callback, Reporter))


def phase_of(trainer: Trainer) -> str:
    """The run's current phase."""
    phases = [phase for reporter in reporters(trainer) if (phase := reporter.phase(trainer)) is not None]
    return phases[-1] if phases else "training"


def stage_of(callback: Callback) -> Stage:
    """A callback's stage; checkpoints come last, so that they save what all the others did."""
    return Stage.CHECKPOINT if isinstance(callback, Checkpoint) else getattr(callback, "stage", Stage.OBSERVER)


def in_order(callbacks: Sequence[Callback]) -> list[Callback]:
    """Callbacks sorted by stage, in the given order within a stage."""
    return sorted(callbacks, key=stage_of)


def data_of(trainer: Trainer) -> RunData:
    """The run's data module."""
    return cast(RunData, trainer.datamodule)  # type: ignore[attr-defined]


def network_of(pl_module: LightningModule) -> GPT:
    """The run's network, without its wrapper."""
    assert isinstance(pl_module.network, GPT)
    return pl_module.network


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All of the run's callbacks, in calling order."""
    return trainer.callbacks  # type: ignore[attr-defined]


def find(trainer: Trainer, kind: type[CallbackType]) -> CallbackType:
    """The trainer's only callback of a class."""
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, kind)]
    assert len(found) == 1, f"a run must have one {kind.__name__}, this one has {len(found)}"
    return found[0]


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of each value over all ranks, which must all call.

    The strategy's own reduction first makes the ranks wait for each other, which empties every device's queue.
    """
    if not dist.is_initialized():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def starts_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the first of its optimizer step."""
    return batch_idx % trainer.accumulate_grad_batches == 0


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the last of its optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0
