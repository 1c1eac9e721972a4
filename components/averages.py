"""Averages of the weights over a run, one of which becomes the final model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.errors import UserError


class Moment(NamedTuple):
    """What an average can see of a run right after an optimizer step."""

    step: int
    """Optimizer steps so far."""
    lr_multiplier: float
    """The step's learning rates over their initial ones."""
    faked: bool
    """Whether the step's forward passes saw fake-quantized weights."""


class Average(ABC):
    """Accumulates float32 weights on their own device; their average becomes the model when training ends."""

    def start(self, weights: Mapping[str, Tensor]) -> None:  # noqa: B027 (most averages do not look at them)
        """Take note of the weights, by name, that training starts with or resumes from."""

    @abstractmethod
    def is_due(self, moment: Moment) -> bool:
        """Whether to add the weights at this moment."""

    @abstractmethod
    def add(self, weights: Mapping[str, Tensor]) -> str | None:
        """Add weights by name, of any float dtype; return a short log message if one is warranted."""

    @abstractmethod
    def value(self) -> dict[str, Tensor] | None:
        """The average, float32 by name; None if nothing was added."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the average to a device."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state that a run resumes from."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what ``state_dict`` gave."""

    def metrics(self) -> dict[str, float]:
        """Its metrics for a dashboard."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Its entries in the run's summary."""
        return {}

    def missed(self) -> str | None:
        """Anything that was requested but never happened."""
        return None

    def describe(self) -> str | None:
        """A sentence about what it does, for people."""
        return None


class SnapshotMean(Average):
    """The mean of snapshots at regular steps of the warm-down (SWA; Izmailov et al., arXiv 1803.05407).

    Args:
        start_multiplier: Snapshots are taken while the learning-rate multiplier is below this; 0 for none.
        every_n_steps: Optimizer steps from one snapshot to the next.
        only_under_qat: Whether to take snapshots only once late QAT has begun; earlier ones lie on another grid.
    """

    def __init__(self, start_multiplier: float = 0.5, every_n_steps: int = 50, only_under_qat: bool = False) -> None:
        if every_n_steps < 1:
            raise UserError(f"averaging.every_n_steps is {every_n_steps}; set it to at least 1.")
        if not 0 <= start_multiplier <= 1:
            raise UserError(
                f"averaging.start_multiplier is {start_multiplier}; set a learning-rate multiplier from 0 (none) to 1."
            )
        self.start_multiplier = start_multiplier
        self.every_n_steps = every_n_steps
        self.only_under_qat = only_under_qat
        self.num_snapshots = 0
        self._sums: dict[str, Tensor] = {}

    def is_due(self, moment: Moment) -> bool:
        """Every n-th step below the multiplier."""
        if moment.step % self.every_n_steps or moment.lr_multiplier >= self.start_multiplier:
            return False
        return moment.faked or not self.only_under_qat

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> str | None:
        """Add a snapshot to the sums."""
        if not self._sums:
            self._sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
        torch._foreach_add_([self._sums[name] for name in weights], [w.float() for w in weights.values()])
        self.num_snapshots += 1
        return f"snapshot {self.num_snapshots}"

    def value(self) -> dict[str, Tensor] | None:
        """The mean."""
        if not self.num_snapshots:
            return None
        return {name: total / self.num_snapshots for name, total in self._sums.items()}

    def to(self, device: torch.device) -> None:
        """Move the sums to a device."""
        self._sums = {name: total.to(device) for name, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"num_snapshots": self.num_snapshots, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint's sums."""
        self.num_snapshots, self._sums = state["num_snapshots"], state["sums"]

    def metrics(self) -> dict[str, float]:
        """The number of snapshots."""
        return {"phase/snapshots": float(self.num_snapshots)}

    def summary(self) -> dict[str, Any]:
        """The number of snapshots averaged."""
        return {"snapshots_averaged": self.num_snapshots}

    def missed(self) -> str | None:
        """That no snapshot was taken."""
        if not self.start_multiplier or self.num_snapshots:
            return None
        under_qat = " under QAT" if self.only_under_qat else ""
        return (
            f"no snapshot was averaged: no multiple of {self.every_n_steps} steps came{under_qat} with the "
            f"learning-rate multiplier under {self.start_multiplier}"
        )

    def describe(self) -> str | None:
        """When snapshots are taken."""
        if not self.start_multiplier:
            return None
        return (
            f"The model is the mean of snapshots every {self.every_n_steps} steps while the learning-rate multiplier "
            f"is under {self.start_multiplier:g}"
        ) + (", late QAT having begun." if self.only_under_qat else ".")


class ExponentialMean(Average):
    """The exponential moving average of the weights after every step (EMA), ``e <- d e + (1 - d) p``.

    It starts at the initial weights without bias correction: after n steps they still have weight d^n.

    Args:
        decay: Share d of the average that a step keeps, from 0 (the last weights) to under 1.
    """

    def __init__(self, decay: float = 0.997) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"averaging.decay is {decay}; set the share that a step leaves, from 0 to under 1.")
        self.decay = decay
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Start at these weights, unless a checkpoint has already given an average."""
        if not self._means:
            self._means = {name: w.detach().to(torch.float32, copy=True) for name, w in weights.items()}

    def is_due(self, moment: Moment) -> bool:
        """After every step."""
        return True

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> str | None:
        """Move toward the weights, all of them in one update."""
        assert self._means.keys() == weights.keys(), "it must be started"
        means = [self._means[name] for name in weights]
        torch._foreach_lerp_(means, [w.float() for w in weights.values()], 1 - self.decay)
        return None

    def value(self) -> dict[str, Tensor] | None:
        """The average so far."""
        return dict(self._means) or None

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self._means = {name: mean.to(device) for name, mean in self._means.items()}

    def state_dict(self) -> dict[str, Any]:
        """The average so far."""
        return {"means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a checkpoint's average."""
        self._means = state["means"]

    def summary(self) -> dict[str, Any]:
        """The decay."""
        return {"ema_decay": self.decay}

    def describe(self) -> str | None:
        """What the model is."""
        return f"The model is the exponential mean of the weights after every step, of decay {self.decay:g}."
