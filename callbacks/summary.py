"""summary.json: what a run was, what it did, and its result."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from callbacks.common import data_of, network_of, reporters
from components.files import write_user_file
from components.run_files import SUMMARY_NAME


class RunSummary(Callback):
    """Collect the facts of every reporter and of the data, and warn of every phase that was never reached.

    It must be called after the callbacks that it reads.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a fit's summary, and warn of phases that were never reached."""
        missed = [sentence for reporter in reporters(trainer) for sentence in reporter.missed(trainer)]
        for sentence in missed:
            rank_zero_warn(f"A phase never came: {sentence}.")
        facts = {
            "step_stop": trainer.global_step,
            "tokens_seen": trainer.global_step * data_of(trainer).train_batch_tokens,
            "phases_missed": missed,
            "techniques": [sentence for reporter in reporters(trainer) for sentence in reporter.describe(trainer)],
        }
        self._write(trainer, pl_module, facts)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary of a ``validate``."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._write(trainer, pl_module, {})

    def _write(self, trainer: Trainer, pl_module: LightningModule, facts: dict[str, Any]) -> None:
        for reporter in reporters(trainer):
            facts |= reporter.summary(trainer)
        facts |= data_of(trainer).summary()
        facts |= _surroundings(trainer, pl_module)
        log_dir = trainer.log_dir  # a broadcast from rank 0, so every rank must take part
        if trainer.is_global_zero:
            assert log_dir is not None
            path = Path(log_dir) / SUMMARY_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            write_user_file(path, (json.dumps(facts, indent=2) + "\n").encode())
            rank_zero_info(f"Summary: {path}")


def _surroundings(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    device = trainer.strategy.root_device
    seed = os.environ.get("PL_GLOBAL_SEED")
    return {
        "num_params": sum(p.numel() for p in network_of(pl_module).parameters()),
        "network": network_of(pl_module).config.describe(),
        "seed": None if seed is None else int(seed),
        "world_size": trainer.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "precision": str(trainer.precision),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
