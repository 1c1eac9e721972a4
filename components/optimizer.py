"""The recipe's optimizer: Muon for the matrices, AdamW for embeddings and scalars, as one ``Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from components.errors import UserError
from components.muon import NEWTON_SCHULZ, POLAR_EXPRESS, Coefficients, Muon

GROUPS = ("matrices", "embeddings", "scalars", "head")
"""The optimizer groups that a module may place its parameters in."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Rates and decays of each parameter group.

    Args:
        matrix_lr: Muon's learning rate for block matrices and the bigram projection.
        matrix_weight_decay: Muon's decoupled weight decay, times its learning rate each step.
        newton_schulz_steps: Iterations of Muon's orthogonalization.
        newton_schulz_coefficients: "jordan" for the same polynomial in every iteration, or "polar_express" for a
            different one in each of at most 5.
        row_normalize: Whether Muon scales each output channel's direction to unit length before orthogonalizing.
        embedding_lr: AdamW's learning rate for the token and bigram tables of a network with tied embeddings.
        embedding_weight_decay: AdamW's decoupled weight decay of the tables, times their learning rate each step.
        untied_embedding_lr: The same for a network whose embeddings are not tied.
        head_lr: Adam's learning rate for an untied output head.
        scalar_lr: AdamW's learning rate for scales, mixes, gains, gates and skip weights.
        scalar_weight_decay: AdamW's decoupled weight decay of these, times their learning rate each step.
        adam_beta1: AdamW's decay of the mean gradient.
        adam_beta2: AdamW's decay of the mean squared gradient.
        adam_eps: Term added to AdamW's root mean square.
    """

    matrix_lr: float = 0.025
    matrix_weight_decay: float = 0.04
    newton_schulz_steps: int = 5
    newton_schulz_coefficients: Literal["jordan", "polar_express"] = "jordan"
    row_normalize: bool = False
    embedding_lr: float = 0.03
    embedding_weight_decay: float = 0.01
    untied_embedding_lr: float = 0.6
    head_lr: float = 0.008
    scalar_lr: float = 0.02
    scalar_weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8

    def __post_init__(self) -> None:
        """Reject iterations that have no coefficients.

        Raises:
            UserError: Polar Express has fewer polynomials than the iterations requested.
        """
        if self.newton_schulz_coefficients == "polar_express" and self.newton_schulz_steps > len(POLAR_EXPRESS):
            raise UserError(
                f"model.optimizer.newton_schulz_steps is {self.newton_schulz_steps}, and polar_express has "
                f"coefficients for {len(POLAR_EXPRESS)}; set it to at most that."
            )

    @property
    def iterations(self) -> tuple[Coefficients, ...]:
        """The coefficients of each iteration of Muon's orthogonalization."""
        if self.newton_schulz_coefficients == "polar_express":
            return POLAR_EXPRESS[: self.newton_schulz_steps]
        return (NEWTON_SCHULZ,) * self.newton_schulz_steps


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


def parameter_groups(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The network's parameters by optimizer group, each in exactly one, as its module declares.

    A module's ``optimizer_groups`` gives the group of each of its own parameters. A parameter without a group, or an
    unknown group, is a bug in the program: how it trains would be left to chance.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for prefix, module in network.named_modules():
        placed: dict[str, str] = getattr(module, "optimizer_groups", {})
        for name, p in module.named_parameters(recurse=False):
            place = f"{type(module).__name__}.optimizer_groups"
            assert name in placed, f"{prefix}.{name} is in no optimizer group: name one in {place}"
            assert placed[name] in groups, f"{place} names {placed[name]}, which is none of {', '.join(GROUPS)}"
            groups[placed[name]].append(p)
    everything = [id(p) for group in groups.values() for p in group]
    assert len(everything) == len(set(everything)), "two modules share a parameter"
    return groups


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> CompositeOptimizer:
    """Muon and AdamW over the network's parameters, in groups with their ``name`` and ``initial_lr``.

    Groups: ``matrices``, ``embeddings``, ``scalars`` and, if embeddings are not tied, ``head``. Muon's momentum is
    its default until a schedule sets it.
    """
    params = parameter_groups(network)

    def group(name: str, lr: float, **settings: float) -> dict[str, Any]:
        return {"name": name, "params": params[name], "lr": lr, "initial_lr": lr, **settings}

    muon = Muon(
        [group("matrices", config.matrix_lr)],
        lr=config.matrix_lr,
        weight_decay=config.matrix_weight_decay,
        coefficients=config.iterations,
        row_normalize=config.row_normalize,
    )
    embedding_lr = config.untied_embedding_lr if params["head"] else config.embedding_lr
    adamw_groups = [
        group("embeddings", embedding_lr, weight_decay=config.embedding_weight_decay),
        group("scalars", config.scalar_lr, weight_decay=config.scalar_weight_decay),
    ]
    if params["head"]:
        adamw_groups.append(group("head", config.head_lr, weight_decay=0.0))
    adamw = AdamW(
        adamw_groups,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )
    return CompositeOptimizer([muon, adamw])
