"""Termination signals: the step under way is finished, the state saved, and every rank leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import Stage, announce, ends_step, find
from callbacks.monitor import Monitor
from callbacks.ranks import post, posted, tell_children, wait_for
from components.scorer import ScoringPass

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TERMINATED, INTERRUPTED = 143, 130
"""Exit codes after a termination or a preemption, and after Ctrl-C."""
TO_SAVE = "{saved}"
SIGNALED, SAVED = "signaled", "saved"
"""Notes between ranks."""
LOOK_SECONDS = 0.5
"""How often a rank looks for another's note."""
SAVE_SECONDS = 60.0
"""How long other ranks wait for rank 0 to save."""


class Stopped(SystemExit):
    """The run ends because of a signal.

    Attributes:
        sentence: What was saved, and how to go on; None on a rank that leaves this to rank 0.
    """

    code: int

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(code)
        self.sentence: str | None = sentence


class Signals(Callback):
    """End a run at a signal with its state saved: SIGTERM, SIGUSR1 (a preemption) or Ctrl-C.

    Before the first step, and in ``validate``, there is nothing to save, and the process leaves at once. Between the
    first step and the last one, every rank finishes the step under way, which the clock's reading makes the same for
    all, rank 0 saves, and the others wait for that. In a validation a rank leaves before its next batch. In the export
    it leaves once the artifact is written, without scoring it. A second Ctrl-C leaves at once.

    A process that Lightning has started on rank 0's node passes for successful, since rank 0 gives the exit code; any
    other launcher sees the code of every rank.
    """

    stage = Stage.LAST

    def __init__(self) -> None:
        super().__init__()
        self._received = 0
        self._num_interrupts = 0
        self._leaves_at_once = True
        self._clock: Clock | None = None
        self._looked = 0.0
        self._is_child = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals within this context."""
        previous = {number: signal.signal(number, self._handle) for number in HANDLED}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep Lightning from handling signals itself.

        Its handler broadcasts, in the middle of whatever the rank is doing. Its training loop asks rank 0 before every
        micro-batch, and waits for the device to receive the answer
        (https://github.com/Lightning-AI/pytorch-lightning/issues/21487).
        """
        environment = getattr(trainer.strategy, "cluster_environment", None)
        self._is_child = isinstance(environment, LightningEnvironment) and environment.local_rank() > 0
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if stage == TrainerFn.FITTING:
            self._clock = find(trainer, Clock)
            if dist.is_initialized():
                trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, leave only between steps."""
        self._leaves_at_once = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after a step at whose end the ranks have heard of a signal.

        Raises:
            Stopped: They have.
        """
        if not ends_step(trainer, batch_idx):
            return
        clock = find(trainer, Clock)
        if clock.signal:
            announce(trainer, "signal", f"stopped by {signal.Signals(clock.signal).name} at step {trainer.global_step}")
            raise self._stopped(clock.signal, TO_SAVE)
        if trainer.is_global_zero:
            clock.received = self._heard()
        elif self._received:
            post(SIGNALED)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ScoringPass, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let a validation of a fit end before its next batch."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.may_end(batch, TO_SAVE)

    def may_end(self, scoring: ScoringPass, done: str) -> None:
        """Let a scoring pass of a fit end before its next batch if a signal has come.

        Args:
            scoring: The pass.
            done: What to tell the user, as a clause.
        """

        def leave_if_asked() -> None:
            heard = self._heard()
            if heard:
                post(SIGNALED)
                raise self._stopped(heard, done)

        scoring.windows.before_batch = leave_if_asked

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save on rank 0, while the others wait, now that a scoring pass has given the network its weights back.

        Raises:
            UserError: The state is not worth saving: its loss or gradient is not finite.
        """
        if not isinstance(exception, Stopped) or self._leaves_at_once:
            return
        self._received = self._received or signal.SIGTERM  # another one must not disturb the saving
        if not trainer.is_global_zero:
            wait_for(SAVED, SAVE_SECONDS)
            exception.sentence = None
            return
        checkpoints = find(trainer, Checkpoints)
        try:
            find(trainer, Monitor).check(trainer)
            checkpoints.save_now(trainer)
        finally:
            post(SAVED)
        if exception.sentence is not None:
            exception.sentence = exception.sentence.replace(TO_SAVE, checkpoints.how_to_go_on())

    def _heard(self) -> int:
        """The signal that this rank has received or heard of; looks for other ranks' notes now and then."""
        agreed = 0 if self._clock is None else self._clock.signal
        if self._received or agreed:
            return self._received or agreed
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if posted(SIGNALED):
                return signal.SIGTERM
        return 0

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            self._num_interrupts += 1
            if self._num_interrupts > 1:
                tell_children(signal.SIGKILL)
                os._exit(INTERRUPTED)
        if self._received:
            return
        self._received = signum
        # Lightning's launcher passes nothing on. A terminal sends Ctrl-C to every process by itself.
        tell_children(signal.SIGTERM)
        if self._clock is not None:
            self._clock.received = signum
        if self._leaves_at_once:
            raise self._stopped(signum, "there was nothing to save")

    def _stopped(self, signum: int, done: str) -> Stopped:
        code = INTERRUPTED if signum == signal.SIGINT else TERMINATED
        return Stopped(0 if self._is_child else code, f"Stopped by {signal.Signals(signum).name}: {done}.")
