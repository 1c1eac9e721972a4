"""Depth recurrence that begins in the course of a run: some layers are run again once a share of it is spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.clock import Clock
from callbacks.common import Reporter, Variant, announce, find, network_of, starts_step
from components.errors import UserError


class Loops(Reporter):
    """Train without the network's loop until the run has spent a share of its budget, then with it.

    Validations during the run use the order that training is in. The exported network always has the loop, since its
    configuration does. A network without a loop (``model.num_loops`` 0) is left alone.

    Args:
        start_fraction: Share of the budget (seconds, or steps where seconds are not limited) after which layers are
            run again; 0 for from the start.
    """

    def __init__(self, start_fraction: float = 0.0) -> None:
        super().__init__()
        if not 0 <= start_fraction <= 1:
            raise UserError(f"loops.start_fraction is {start_fraction}; set a share of the budget, from 0 to 1.")
        self.start_fraction = start_fraction
        self.start_step: int | None = None
        self.start_seconds: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the loop out until its time has come."""
        if _has_loop(pl_module):
            network_of(pl_module).looping = self.start_step is not None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Switch before the first step at or beyond the share."""
        if not _has_loop(pl_module) or self.start_step is not None or not starts_step(trainer, batch_idx):
            return
        clock = find(trainer, Clock)
        if clock.progress(trainer) >= self.start_fraction:
            self.start_step, self.start_seconds = trainer.global_step, clock.elapsed
            network_of(pl_module).looping = True
            announce(trainer, "loops", f"loops from step {self.start_step}, {self.start_seconds:.3f} s")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the network as the artifact will describe it."""
        network_of(pl_module).looping = _has_loop(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """When the run switched."""
        return {"start_step": self.start_step, "start_seconds": self.start_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember when the run switched."""
        self.start_step, self.start_seconds = state_dict["start_step"], state_dict["start_seconds"]

    def phase(self, trainer: Trainer) -> str | None:
        """Whether layers are run again."""
        return "loops" if self.start_step is not None and self.start_fraction else None

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """1 once the run has switched."""
        return {"phase/loops": float(self.start_step is not None)} if _has_loop(trainer.lightning_module) else {}

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """When the run switched."""
        if not _has_loop(trainer.lightning_module):
            return {}
        return {"loops_start_step": self.start_step, "loops_start_seconds": self.start_seconds}

    def missed(self, trainer: Trainer) -> list[str]:
        """That the switch never came."""
        if not _has_loop(trainer.lightning_module) or self.start_step is not None:
            return []
        return [
            f"the loop never began: no step started at or beyond loops.start_fraction {self.start_fraction} of the "
            f"budget, of which the run spent {find(trainer, Clock).progress(trainer):.0%}, but the exported network "
            "loops"
        ]

    def describe(self, trainer: Trainer) -> list[str]:
        """From when on layers were run again."""
        if not _has_loop(trainer.lightning_module) or not self.start_fraction:
            return []
        return [f"Layers are run again from {self.start_fraction:.0%} of the run on."]

    def variants(self, trainer: Trainer, pl_module: LightningModule) -> Sequence[Variant]:
        """Training and scoring with the loop."""
        if not _has_loop(pl_module) or not self.start_fraction:
            return ()
        return (Variant("loops", lambda: _looping(pl_module), scored=True),)


def _has_loop(pl_module: LightningModule) -> bool:
    return network_of(pl_module).config.num_loops > 0


@contextmanager
def _looping(pl_module: LightningModule) -> Iterator[None]:
    network = network_of(pl_module)
    before, network.looping = network.looping, True
    try:
        yield
    finally:
        network.looping = before
