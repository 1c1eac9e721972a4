"""The run's only clock: the training time that all ranks agree on, and the budget that ends the run."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from callbacks.common import Reporter, Stage, ends_step
from components.errors import LostRankError, UserError

RECENT_STEPS = 5  # the longest of them estimates the next; few, so that one hiccup does not end the run early
POLL_SECONDS = 0.0002  # the device has another step to run meanwhile


class Clock(Reporter):
    """Measure training time, the same on every rank, and stop before the step that would overrun the budget.

    The clock starts when training starts, after anything that an earlier callback's ``on_train_start`` compiles, and
    is paused during validation. Rank 0 reads it once per optimizer step and broadcasts the reading between the hosts,
    which does not wait for the device. Everything that depends on time uses this reading, so ranks cannot disagree. On
    a GPU a reading waits for the step before the last launched one, so at most one step is still running.

    A reading also carries the signal that rank 0 has received, so ranks agree on the step after which they stop.

    Args:
        max_seconds: Budget of training time, in seconds; 0 for no limit, so that trainer.max_steps ends the run.
        reserve_seconds: Seconds at the end of the budget that are kept for what reads training data after the last
            step, such as a quantizer's calibration.

    Attributes:
        elapsed: Seconds of training at the last reading.
        received: The signal that this rank has received, for which the run is to stop; 0 for none.
        signal: The one that rank 0 had received at the last reading, the same on every rank.
        group: The hosts' process group; None for a single rank.
        patience: Seconds to wait for a step on the device, if other ranks take part in it.
    """

    stage = Stage.CLOCK

    def __init__(self, max_seconds: float = 600.0, reserve_seconds: float = 0.0) -> None:
        super().__init__()
        if max_seconds < 0:
            raise UserError(f"clock.max_seconds is {max_seconds}; set a budget in seconds, or 0 for none.")
        if reserve_seconds < 0 or (max_seconds and reserve_seconds >= max_seconds):
            raise UserError(
                f"clock.reserve_seconds is {reserve_seconds}; set it from 0 to below clock.max_seconds {max_seconds}."
            )
        self.max_seconds = max_seconds
        self.reserve_seconds = reserve_seconds
        self.elapsed = 0.0
        self.received = 0
        self.signal = 0
        self.group: Any = None
        self.patience = math.inf
        self._recent: deque[float] = deque(maxlen=RECENT_STEPS)
        self._started: float | None = None
        self._elapsed_at_start = 0.0
        self._last_launched: torch.cuda.Event | None = None

    @property
    def train_seconds(self) -> float:
        """Seconds of the budget in which optimizer steps are taken."""
        return self.max_seconds - self.reserve_seconds

    def charge(self, seconds: float) -> None:
        """Count seconds that were spent on training data after the last step."""
        self.elapsed += seconds
        self._warn_of_overrun("work after its last step that took longer than clock.reserve_seconds")

    def progress(self, trainer: Trainer) -> float:
        """Fraction of the time for steps spent so far, 0 to 1, or of the steps if seconds are not limited."""
        if self.max_seconds:
            return self.elapsed / self.train_seconds
        return trainer.global_step / trainer.max_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an endless run, and open a process group between the hosts' CPUs.

        Raises:
            UserError: Neither seconds nor steps are limited.
        """
        if stage != TrainerFn.FITTING:
            return
        if not self.max_seconds and trainer.max_steps < 0:
            raise UserError("The run has no end: set clock.max_seconds or trainer.max_steps.")
        if dist.is_initialized():
            self.group = dist.new_group(backend="gloo")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start once every rank is ready; stop immediately if a resumed run's budget is already spent."""
        trainer.strategy.barrier("clock start")
        self._resume(trainer)
        if trainer.global_step:
            self._stop_in_time(trainer, self.elapsed / trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock after each optimizer step, and stop if the next one would overrun."""
        if not ends_step(trainer, batch_idx):
            return
        self._wait_for_step_before(trainer)
        before, self.elapsed = self.elapsed, self._agree(self._read())
        self._recent.append(self.elapsed - before)
        self._stop_in_time(trainer, max(self._recent))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause while a fit validates."""
        if trainer.state.fn == TrainerFn.FITTING and self._started is not None:
            self._pause(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume."""
        if trainer.state.fn == TrainerFn.FITTING and self._started is None and not trainer.sanity_checking:
            self._resume(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once all launched work is done: the stream is endless, so its epoch ends with the run."""
        self._pause(trainer)
        self._warn_of_overrun("a step that took longer than the steps before it")

    def state_dict(self) -> dict[str, Any]:
        """The elapsed time, from which a resumed run continues."""
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the elapsed time from a checkpoint."""
        self.elapsed = state_dict["elapsed"]

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """Seconds of training so far."""
        return {"speed/elapsed_seconds": self.elapsed}

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The run summary's fields about time."""
        return {
            "wallclock_seconds": self.elapsed,
            "max_wallclock_seconds": self.max_seconds,
            "overrun_seconds": self._overrun,
        }

    @property
    def _overrun(self) -> float:
        """Seconds spent beyond the budget."""
        return max(0.0, self.elapsed - self.max_seconds) if self.max_seconds else 0.0

    def _warn_of_overrun(self, by: str) -> None:
        if self._overrun:
            rank_zero_warn(
                f"The run has overrun its budget of {self.max_seconds:g} s by {self._overrun:.3f} s, by {by}."
            )

    def _read(self) -> float:
        """Seconds on this rank's clock."""
        if self._started is None:
            return self._elapsed_at_start
        return self._elapsed_at_start + time.perf_counter() - self._started

    def _agree(self, seconds: float) -> float:
        if self.group is None:
            self.signal = self.received
            return seconds
        reading = torch.tensor([seconds, self.received], dtype=torch.float64)
        dist.broadcast(reading, src=0, group=self.group)
        agreed, signal = reading.tolist()
        self.signal = int(signal)
        return float(agreed)

    def _resume(self, trainer: Trainer) -> None:
        _synchronize(trainer)
        self._elapsed_at_start, self._started = self.elapsed, time.perf_counter()

    def _pause(self, trainer: Trainer) -> None:
        _synchronize(trainer)
        self.elapsed = self._agree(self._read())
        self._started = None

    def _wait_for_step_before(self, trainer: Trainer) -> None:
        if trainer.strategy.root_device.type != "cuda":
            return
        if self._last_launched is not None:
            self._wait_for(self._last_launched)
        self._last_launched = torch.cuda.Event()
        self._last_launched.record()

    def _wait_for(self, launched: torch.cuda.Event) -> None:
        """Wait for the device, which waits for all ranks and would wait forever for one that is lost."""
        if self.group is None:
            launched.synchronize()
            return
        deadline = time.perf_counter() + self.patience
        while not launched.query():
            if time.perf_counter() > deadline:
                raise LostRankError(f"a step did not end within {self.patience:.0f} s")
            time.sleep(POLL_SECONDS)

    def _stop_in_time(self, trainer: Trainer, step_seconds: float) -> None:
        """Stop if the next step, and the one that may still be running, would end past the budget."""
        running = 0 if self._last_launched is None else 1
        if self.max_seconds and self.elapsed + (1 + running) * step_seconds > self.train_seconds:
            trainer.should_stop = True


def _synchronize(trainer: Trainer) -> None:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
