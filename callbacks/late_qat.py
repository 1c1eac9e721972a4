"""Late quantization-aware training: the last part of a run trains with the weights as export will store them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.clock import Clock
from callbacks.common import Reporter, Variant, announce, find, network_of, starts_step
from components.errors import UserError
from components.quantization import Nearest, Quantizer
from components.storage import RECIPE, StorageRule


class LateQAT(Reporter):
    """Switch the network to fake quantization once the run has spent a given fraction of its budget.

    Validation during the run uses the float weights before and after the switch, so that its curve stays comparable.

    Args:
        start_fraction: Fraction of the budget (seconds, or steps if seconds are not limited) after which forward
            passes see quantized weights; 1 for never.
        rules: How export stores each weight, and which weights are fake-quantized.
        quantizer: Rounds the weights at export.
    """

    def __init__(
        self,
        start_fraction: float = 0.85,
        rules: Sequence[StorageRule] = RECIPE,
        quantizer: Quantizer = Nearest(),
    ) -> None:
        super().__init__()
        if not 0 <= start_fraction <= 1:
            raise UserError(
                f"late_qat.start_fraction is {start_fraction}; set a fraction of the budget, from 0 to 1 (1 for never)."
            )
        self.start_fraction = start_fraction
        self.rules = tuple(rules)
        self.quantizer = quantizer
        self.start_step: int | None = None
        self.start_seconds: float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to train for a quantizer whose codes the weights alone do not decide.

        Raises:
            UserError: The quantizer is calibrated.
        """
        if stage == TrainerFn.FITTING and self.start_fraction < 1 and self.quantizer.calibration_batches:
            raise UserError(
                f"late QAT cannot fake what {type(self.quantizer).__name__} stores, which depends on its calibration; "
                "set late_qat.start_fraction to 1 (never), or export.quantizer to Nearest."
            )

    @property
    def active(self) -> bool:
        """Whether the run has switched."""
        return self.start_step is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn fake quantization back on if the run was resumed after the switch."""
        if self.active:
            self._enable(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Switch before the first step at or past the fraction."""
        if self.active or self.start_fraction == 1 or not starts_step(trainer, batch_idx):
            return
        clock = find(trainer, Clock)
        if clock.progress(trainer) >= self.start_fraction:
            self.start_step, self.start_seconds = trainer.global_step, clock.elapsed
            self._enable(pl_module)
            announce(trainer, "late QAT", f"late QAT from step {self.start_step}, {self.start_seconds:.3f} s")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate with the float weights."""
        network_of(pl_module).disable_fake_quantization()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn fake quantization back on in a fit."""
        if self.active and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._enable(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turn fake quantization off, so that the export scores the float weights."""
        network_of(pl_module).disable_fake_quantization()

    def state_dict(self) -> dict[str, Any]:
        """When the run switched."""
        return {"start_step": self.start_step, "start_seconds": self.start_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore when the run switched."""
        self.start_step, self.start_seconds = state_dict["start_step"], state_dict["start_seconds"]

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The run summary's fields about the switch."""
        return {
            "qat_start_step": self.start_step,
            "qat_start_seconds": self.start_seconds,
            "qat_steps": 0 if self.start_step is None else trainer.global_step - self.start_step,
        }

    def missed(self, trainer: Trainer) -> list[str]:
        """That late QAT never began."""
        if self.start_fraction < 1 and not self.active:
            return [
                f"late QAT never began: no step started at or beyond late_qat.start_fraction {self.start_fraction} of "
                f"the budget, of which the run spent {find(trainer, Clock).progress(trainer):.0%}"
            ]
        return []

    def phase(self, trainer: Trainer) -> str | None:
        """Late QAT, once it has begun."""
        return "late QAT" if self.active else None

    def metrics(self, trainer: Trainer) -> dict[str, float]:
        """1 once the run has switched."""
        return {"phase/late_qat": float(self.active)}

    def describe(self, trainer: Trainer) -> list[str]:
        """When fake quantization begins."""
        if self.start_fraction == 1:
            return []
        return [f"From {self.start_fraction:.0%} of the run on, forward passes see the weights as export stores them."]

    def variants(self, trainer: Trainer, pl_module: LightningModule) -> Sequence[Variant]:
        """Training steps under fake quantization."""
        if self.start_fraction == 1:
            return ()
        return (Variant("late QAT", lambda: self._enabled(pl_module)),)

    @contextmanager
    def _enabled(self, pl_module: LightningModule) -> Iterator[None]:
        self._enable(pl_module)
        try:
            yield
        finally:
            network_of(pl_module).disable_fake_quantization()

    def _enable(self, pl_module: LightningModule) -> None:
        network_of(pl_module).enable_fake_quantization(self.rules, self.quantizer)
