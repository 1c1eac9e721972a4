"""The recipe's optimizer: Muon for the matrices, AdamW for tables and control tensors, as one ``Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from components.gpt import GPT
from components.muon import Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """Rates and decays of each parameter group.

    Args:
        matrix_lr: Muon's learning rate for block matrices and the bigram projection.
        matrix_momentum: Muon's momentum before any schedule sets it.
        matrix_weight_decay: Muon's decoupled weight decay, times its learning rate each step.
        newton_schulz_steps: Iterations of Muon's orthogonalization.
        table_lr: AdamW's learning rate for the token and bigram tables of a network with tied embeddings.
        untied_table_lr: The same for a network whose embeddings are not tied.
        head_lr: Adam's learning rate for an untied output head.
        control_lr: AdamW's learning rate for scales, mixes, gains, gates and skip weights.
        adam_beta1: AdamW's decay of the mean gradient.
        adam_beta2: AdamW's decay of the mean squared gradient.
        adam_eps: AdamW's addend to the root mean square.
        adam_weight_decay: AdamW's decoupled weight decay, times its learning rate each step.
    """

    matrix_lr: float = 0.025
    matrix_momentum: float = 0.92
    matrix_weight_decay: float = 0.04
    newton_schulz_steps: int = 5
    table_lr: float = 0.03
    untied_table_lr: float = 0.6
    head_lr: float = 0.008
    control_lr: float = 0.02
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    adam_weight_decay: float = 0.01


class CompositeOptimizer(Optimizer):
    """Several optimizers that step as one and share one state, so that automatic optimization and resume just work.

    Its ``param_groups`` are the children's own dicts, so a schedule that writes to them reaches the children.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._link()

    def _link(self) -> None:
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Run the closure once, then step every child."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore every child's groups and state from what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self._link()


def build_optimizer(network: GPT, config: OptimizerConfig) -> CompositeOptimizer:
    """Muon and AdamW over the network's parameters, in named groups that hold their ``initial_lr``.

    Groups: ``matrices``, ``tables``, ``controls`` and, when embeddings are not tied, ``head``.
    """
    matrices: list[Tensor] = []
    tables: list[Tensor] = [network.tok_emb.weight]
    controls: list[Tensor] = []
    if network.bigram is not None:
        tables.append(network.bigram.embed.weight)
    head: list[Tensor] = [] if network.lm_head is None else [network.lm_head.weight]
    taken = {id(p) for p in (*tables, *head)}
    for name, p in network.named_parameters():
        if id(p) not in taken:
            # A skip or mix weight is 2-D too, but a stack of vectors: only linear layers hold matrices.
            (matrices if name.endswith(".weight") else controls).append(p)

    def group(name: str, params: list[Tensor], lr: float, **settings: float) -> dict[str, Any]:
        return {"name": name, "params": params, "lr": lr, "initial_lr": lr, **settings}

    table_lr = config.untied_table_lr if head else config.table_lr
    muon = Muon(
        [group("matrices", matrices, config.matrix_lr)],
        lr=config.matrix_lr,
        momentum=config.matrix_momentum,
        weight_decay=config.matrix_weight_decay,
        newton_schulz_steps=config.newton_schulz_steps,
    )
    adamw_groups = [group("tables", tables, table_lr), group("controls", controls, config.control_lr)]
    if head:
        adamw_groups.append(group("head", head, config.head_lr, weight_decay=0.0))
    adamw = AdamW(
        adamw_groups,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.adam_weight_decay,
        fused=True,
    )
    return CompositeOptimizer([muon, adamw])
