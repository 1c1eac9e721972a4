"""The feed-forward part of a block: a squared ReLU, or a squared leaky one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from components.fused_mlp import fused_mlp
from components.layers import Linear, seen_weight


class _SquaredReLU(torch.autograd.Function):
    """``max(z, 0)^2``, whose backward pass needs only the output a, which the next product keeps: ``2 sqrt(a)``."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        output = z.relu().square()
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        [output] = ctx.saved_tensors
        return gradients[0] * (2 * output.sqrt())


class _SquaredLeakyReLU(torch.autograd.Function):
    """``max(z, leak z)^2``, whose backward pass needs only the input: the output does not say its sign."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, leak: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.leak = leak
        return torch.where(z > 0, z, leak * z).square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [z] = ctx.saved_tensors
        return gradients[0] * torch.where(z > 0, 2 * z, 2 * ctx.leak**2 * z), None


def squared_relu(z: Tensor, leak: float) -> Tensor:
    """The square of the leaky ReLU of slope ``leak``, from 0 (ReLU) to 1; it cannot be differentiated twice.

    It keeps one tensor for the backward pass, where autograd would keep the input and the unsquared output.
    """
    activated: Tensor = _SquaredLeakyReLU.apply(z, leak) if leak else _SquaredReLU.apply(z)
    return activated


class MLP(nn.Module):
    """``proj(phi(fc(x))^2)``, where phi is the ReLU or a leaky ReLU.

    Args:
        model_dim: Width of input and output, in channels.
        hidden_dim: Width between the two products.
        leak: Slope of phi below zero; 0 for the ReLU. The square makes both sides positive.

    Attributes:
        fused: Whether `components.fused_mlp` computes it, for the ReLU alone. Its layers then do not run as modules.
    """

    def __init__(self, model_dim: int, hidden_dim: int, leak: float = 0.0) -> None:
        super().__init__()
        self.leak = leak
        self.fused = False
        self.fc = Linear(model_dim, hidden_dim)
        self.proj = Linear(hidden_dim, model_dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Map each position independently; [B, T, C] in and out."""
        if self.fused:
            fc_HC, proj_CH = (seen_weight(layer).to(x_BTC.dtype) for layer in (self.fc, self.proj))
            return fused_mlp(x_BTC.flatten(0, 1), fc_HC, proj_CH).view_as(x_BTC)
        return self.proj(squared_relu(self.fc(x_BTC), self.leak))
