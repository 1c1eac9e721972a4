"""The LightningModule: the network, its optimizer, and its training and validation steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from components.errors import UserError
from components.fused_mlp import has_triton
from components.gpt import GPT, GPTConfig
from components.optimizer import CompositeOptimizer, OptimizerConfig, build_optimizer
from components.scorer import ScoringPass
from components.scoring import Score


class GPTModule(LightningModule):
    """Train and score a ``GPT``.

    Args:
        compile: Whether to compile the network (needs a C++ compiler on a CPU).
        fused_mlp: Whether a kernel in Triton computes each MLP's activation inside its matrix products (needs a CUDA
            GPU and model.mlp_leak 0).
        optimizer: Learning rates, weight decays and other settings of the optimizers.
        vocab_size: Pieces in the vocabulary; null for the tokenizer's.
        bos_id: The id that begins a document; null for the tokenizer's.
        network: The network's other settings, as in ``GPTConfig``.

    Attributes:
        gradient_norm: Norm of the last step's gradient over all weights before it was clipped, a scalar on the device;
            None before the first step.
    """

    def __init__(
        self,
        compile: bool = False,
        fused_mlp: bool = False,
        optimizer: OptimizerConfig = OptimizerConfig(),
        vocab_size: int | None = None,
        bos_id: int | None = None,
        **network: Any,
    ) -> None:
        super().__init__()
        assert vocab_size is not None, "the caller must take it from the tokenizer"
        assert bos_id is not None, "the caller must take it from the tokenizer"
        # The whole configuration is logged. How a network is run is not the checkpoint's: Lightning would let the
        # checkpoint's settings win over those of a command that scores it elsewhere.
        self.save_hyperparameters(ignore=["compile", "fused_mlp"], logger=False)
        self.network = GPT(GPTConfig(vocab_size=vocab_size, bos_id=bos_id, **network))
        self.optimizer_config = optimizer
        self.compiled = compile
        self.fused_mlp = fused_mlp
        self.gradient_norm: Tensor | None = None
        if compile:
            # One graph, not one per gradient bucket: every later step must run what the warm-up compiled.
            torch._dynamo.config.optimize_ddp = False
            # In place: a wrapper would rename every key in the checkpoints.
            self.network.compile(dynamic=False, fullgraph=True)

    def setup(self, stage: str) -> None:
        """Prepare the network for the run's machine and its longest sequence, before anything is compiled.

        Raises:
            UserError: The MLPs cannot be fused, on this machine or in this network.
        """
        if self.fused_mlp and stage == TrainerFn.FITTING:
            if self.trainer.strategy.root_device.type != "cuda" or not has_triton():
                raise UserError(
                    "model.fused_mlp needs a CUDA GPU and a build of torch with Triton, and this run has not both; set "
                    "it to false."
                )
            self.network.fuse_mlps()
        self.network.reserve_positions(self.trainer.datamodule.longest_sequence)  # type: ignore[attr-defined]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy of a micro-batch of input and target ids, each [B, T], in nats."""
        input_ids, target_ids = batch
        return self.network(input_ids, target_ids).mean()

    def validation_step(self, batch: ScoringPass, batch_idx: int) -> Score:  # type: ignore[override] # the totals
        """Score the whole validation text, which is the single batch; the totals cover all ranks."""
        return batch.run(self.network, self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a run resume with a different number of ranks.

        The trainer counts micro-batches per rank and takes an optimizer step whenever the count is a multiple of the
        number it accumulates, so the saved count is converted to the new number of ranks.
        """
        if self._trainer is None or self._trainer.state.fn != TrainerFn.FITTING:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        moved = checkpoint["global_step"] * self._trainer.accumulate_grad_batches - progress["current"]["ready"]
        for counts in (progress["current"], progress["total"]):
            counts.update({name: count + moved for name, count in counts.items()})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient to a norm of ``gradient_clip_val``, if that is set, and keep the norm that it had.

        Raises:
            UserError: Something other than the norm is to be clipped.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError(
                f"trainer.gradient_clip_algorithm is {gradient_clip_algorithm}; set it to norm, the only one here."
            )
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)

    def configure_optimizers(self) -> CompositeOptimizer:
        """Muon and AdamW as one optimizer; the schedule callback sets its learning rates."""
        return build_optimizer(self.network, self.optimizer_config)
