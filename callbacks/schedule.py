"""Learning-rate warm-down by the clock, and Muon's momentum warm-up by the step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.clock import Clock
from callbacks.common import Reporter, Stage, announce, find, starts_step
from components.errors import UserError


class Schedule(Reporter):
    """Set every learning rate and Muon's momentum before each optimizer step.

    Each learning rate is its initial value times a multiplier. The multiplier is 1, then falls linearly toward 0, but
    never below ``min_multiplier``. It falls over the last ``warmdown_steps`` steps, whose time is estimated from the
    run's mean step time if seconds are limited, or over the last ``warmdown_fraction`` of the budget.

    Args:
        warmdown_steps: Length of the warm-down, in optimizer steps; 0 if a fraction is given instead.
        warmdown_fraction: Length of the warm-down, as a fraction of the budget; 0 if steps are given instead.
        min_multiplier: Lower bound of the multiplier.
        momentum_start: Muon's momentum at the first step.
        momentum_end: Muon's momentum once warmed up.
        momentum_warmup_steps: Steps over which momentum moves linearly from start to end.
    """

    stage = Stage.SCHEDULE

    def __init__(
        self,
        warmdown_steps: int = 3000,
        warmdown_fraction: float = 0.0,
        min_multiplier: float = 0.0,
        momentum_start: float = 0.92,
        momentum_end: float = 0.99,
        momentum_warmup_steps: int = 1500,
    ) -> None:
        super().__init__()
        for name, steps in (("warmdown_steps", warmdown_steps), ("momentum_warmup_steps", momentum_warmup_steps)):
            if steps < 0:
                raise UserError(f"schedule.{name} is {steps}; set it to 0 for none or to a number of steps.")
        for name, share in (("warmdown_fraction", warmdown_fraction), ("min_multiplier", min_multiplier)):
            if not 0 <= share <= 1:
                raise UserError(f"schedule.{name} is {share}; set it from 0 to 1.")
        if warmdown_steps and warmdown_fraction:
            raise UserError(
                f"schedule.warmdown_steps {warmdown_steps} and schedule.warmdown_fraction {warmdown_fraction} both "
                "give the length of the warm-down; set one of them to 0."
            )
        self.warmdown_steps = warmdown_steps
        self.warmdown_fraction = warmdown_fraction
        self.min_multiplier = min_multiplier
        self.momentum_start = momentum_start
        self.momentum_end = momentum_end
        self.momentum_warmup_steps = momentum_warmup_steps
        self.multiplier = 1.0
        self.warmdown_start_step: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the step's learning rates and momentum in the optimizer's groups."""
        if not starts_step(trainer, batch_idx):
            return
        self.multiplier = self._multiplier(trainer)
        if self.multiplier < 1 and self.warmdown_start_step is None:
            self.warmdown_start_step = trainer.global_step
            announce(trainer, "warm-down", f"warm-down from step {trainer.global_step}")
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * self.multiplier
            if "momentum" in group:
                group["momentum"] = self._momentum(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """When the warm-down began."""
        return {"warmdown_start_step": self.warmdown_start_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore when the warm-down began."""
        self.warmdown_start_step = state_dict["warmdown_start_step"]

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The run summary's fields about the schedule."""
        return {"warmdown_start_step": self.warmdown_start_step, "final_lr_multiplier": self.multiplier}

    def phase(self, trainer: Trainer) -> str | None:
        """Whether the learning rate is constant or warming down."""
        return "warm-down" if self.multiplier < 1 else "constant rate"

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """Each group's learning rate, and Muon's momentum."""
        groups = trainer.optimizers[0].param_groups
        rates = {f"lr/{group['name']}": group["lr"] for group in groups}
        [momentum] = {group["momentum"] for group in groups if "momentum" in group}
        return {**rates, "momentum": momentum}

    def missed(self, trainer: Trainer) -> list[str]:
        """That the rate never warmed down, or was never constant."""
        if self._length is not None and self.warmdown_start_step is None:
            return [
                f"the learning rate never warmed down: the {self._length} of warm-down at the end of the budget did "
                f"not begin within the run's {trainer.global_step} steps"
            ]
        # The clock reads 0 before the first step, so the warm-down begins at the second step at the earliest.
        if self.warmdown_steps and self.warmdown_start_step is not None and self.warmdown_start_step <= 1:
            return [
                f"the learning rate was never constant: {self.warmdown_steps} steps of warm-down are more than the "
                "whole budget; lower schedule.warmdown_steps or raise the budget"
            ]
        return []

    def describe(self, trainer: Trainer) -> list[str]:
        """How learning rates fall."""
        floor = f" to {self.min_multiplier:g} of it" if self.min_multiplier else ""
        return [] if self._length is None else [f"The learning rate falls over the last {self._length}{floor}."]

    @property
    def _length(self) -> str | None:
        """The warm-down's length in words; None for no warm-down."""
        if self.warmdown_fraction:
            return f"{self.warmdown_fraction:.0%} of the budget"
        return f"{self.warmdown_steps} steps" if self.warmdown_steps else None

    def _multiplier(self, trainer: Trainer) -> float:
        return max(self.min_multiplier, self._share_left(trainer))

    def _share_left(self, trainer: Trainer) -> float:
        """Share of the warm-down that is still to come, 1 before it begins."""
        step, clock = trainer.global_step, find(trainer, Clock)
        if self.warmdown_fraction:
            return min(1.0, max(0.0, 1 - clock.progress(trainer)) / self.warmdown_fraction)
        if clock.max_seconds:
            remaining, warmdown = (
                clock.train_seconds - clock.elapsed,
                self.warmdown_steps * clock.elapsed / max(step, 1),
            )
        else:
            remaining, warmdown = trainer.max_steps - step, self.warmdown_steps
        return max(0.0, remaining / warmdown) if remaining < warmdown else 1.0

    def _momentum(self, step: int) -> float:
        share = min(1.0, step / self.momentum_warmup_steps) if self.momentum_warmup_steps else 1.0
        return (1 - share) * self.momentum_start + share * self.momentum_end
