"""Which implementation computes attention: chosen by the configuration, said at the start, kept in the summary."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks.common import Reporter, Stage, announce, data_of, network_of
from components.attention import BACKENDS, only_backends
from components.block import Block
from components.errors import UserError

DEFAULT_BACKENDS = ("cudnn", "flash", "efficient", "math")


class AttentionBackend(Reporter):
    """Let attention be computed by the first of a list of implementations that supports the run's shapes.

    Torch left alone may choose another one without a word, such as FlashAttention 2 where cuDNN is too old, and a step
    then takes a tenth longer. A CPU has only flash and math, and takes flash if it is allowed.

    Args:
        backends: Implementations in order of preference: cudnn, flash, efficient, math.
    """

    stage = Stage.WARMUP

    def __init__(self, backends: Sequence[str] = DEFAULT_BACKENDS) -> None:
        super().__init__()
        unknown = [name for name in backends if name not in BACKENDS]
        if unknown or not backends:
            raise UserError(
                f"attention.backends is {', '.join(backends) or 'empty'}; give at least one of {', '.join(BACKENDS)}, "
                "the preferred one first."
            )
        self.backends = list(backends)
        self.chosen: dict[str, str] = {}
        self._allowed = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Allow only these, before anything is compiled."""
        self._allowed.enter_context(only_backends(self.backends))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Allow what was allowed before."""
        self._allowed.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which ones the run uses."""
        length = data_of(trainer).train_seq_len
        with trainer.precision_plugin.train_step_context(), torch.enable_grad():
            self._ask(pl_module, "training", length, length)
        self._ask_for_scoring(trainer, pl_module)
        announce(trainer, "attention", f"attention: {self._sentence()}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out which ones score."""
        self._ask_for_scoring(trainer, pl_module)

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The implementation of each kind of pass."""
        return {"attention_backends": self.chosen}

    def _ask_for_scoring(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scoring = data_of(trainer).scoring
        with trainer.precision_plugin.val_step_context(), torch.no_grad():
            self._ask(pl_module, "scoring", scoring.seq_len, scoring.seq_len)
            self._ask(pl_module, "the last block's scoring", scoring.seq_len, scoring.stride)

    def _ask(self, pl_module: LightningModule, use: str, num_positions: int, num_queries: int) -> None:
        network = network_of(pl_module)
        block = cast(Block, network.blocks[0])
        backend = block.attn.backend(num_positions, num_queries, network.stream_dtype())
        if backend is None:
            raise UserError(
                f"None of attention.backends {', '.join(self.backends)} supports {use} on this machine; add math."
            )
        self.chosen[use] = backend

    def _sentence(self) -> str:
        return ", ".join(f"{backend} in {use}" for use, backend in self.chosen.items())
