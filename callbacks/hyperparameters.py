"""A run's settings, for the loggers that compare runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Hyperparameters(Callback):
    """Give every logger the settings of a fit when it starts.

    Args:
        settings: The whole configuration, by section.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.settings)
