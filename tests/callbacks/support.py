"""What the tests of callbacks and of the module share: a stand-in for the trainer, and small parts for it."""

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.clock import Clock
from components.optimizer import OptimizerConfig
from components.storage import StorageRule
from lightning_modules.gpt import GPTModule
from tests.support import TINY


def trainer_of(callbacks: Sequence[Callback] = (), **settings: Any) -> SimpleNamespace:
    """What a callback asks of a trainer, in a fit on one CPU."""
    strategy = Mock(root_device=torch.device("cpu"))
    strategy.reduce.side_effect = lambda tensor, reduce_op: tensor  # one rank
    strategy.broadcast.side_effect = lambda thing: thing
    defaults = {
        "callbacks": list(callbacks),
        "global_step": 0,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
        "log_every_n_steps": 1,
        "should_stop": False,
        "sanity_checking": False,
        "is_global_zero": True,
        "world_size": 1,
        "precision": "32-true",
        "progress_bar_callback": None,
        "precision_plugin": Mock(train_step_context=nullcontext, val_step_context=nullcontext),
        "state": SimpleNamespace(fn=TrainerFn.FITTING),
        "strategy": strategy,
        "loggers": [],
    }
    return SimpleNamespace(**(defaults | settings))


def clock_at(elapsed: float = 0.0, max_seconds: float = 0.0) -> Clock:
    """A clock that shows this time."""
    clock = Clock(max_seconds=max_seconds)
    clock.elapsed = elapsed
    return clock


def small_module(seed: int = 0, compile: bool = False, **network: Any) -> GPTModule:
    """A module whose every parameter is random; by default too narrow for a quantized matrix."""
    torch.manual_seed(seed)
    module = GPTModule(
        compile=compile, optimizer=OptimizerConfig(), **{**TINY, "bos_id": 1, "num_layers": 2, **network}
    )
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


# Wide enough for attention matrices to be int6 and MLP matrices int5.
WIDE = {"model_dim": 272, "num_heads": 4}

# Rules by which even a narrow network has matrices that are quantized and faked.
MLP_INT5 = (StorageRule("blocks.*.mlp.*.weight", "int5", qat=True), StorageRule("*", "float16"))
