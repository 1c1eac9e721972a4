"""A run's settings, for the loggers that compare runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Hyperparameters(Callback):
    """Give every logger the settings of a fit when it starts."""

    settings: Mapping[str, Any] = {}
    """The whole configuration; set by the program that has parsed it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings."""
        for logger in trainer.loggers:
            logger.log_hyperparams(dict(self.settings))
