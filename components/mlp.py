"""The feed-forward part of a block: a squared ReLU, or a squared leaky one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from components.layers import Linear


class MLP(nn.Module):
    """``proj(phi(fc(x))^2)``, where phi is the ReLU or a leaky ReLU.

    Args:
        model_dim: Width of input and output, in channels.
        hidden_dim: Width between the two products.
        leak: Slope of phi below zero; 0 for the ReLU. The square makes both sides positive.
    """

    def __init__(self, model_dim: int, hidden_dim: int, leak: float = 0.0) -> None:
        super().__init__()
        self.leak = leak
        self.fc = Linear(model_dim, hidden_dim)
        self.proj = Linear(hidden_dim, model_dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Map each position independently; [B, T, C] in and out."""
        h = self.fc(x_BTC)
        # For backward, the ReLU keeps only its output, which its square keeps anyway; the leaky one keeps its input.
        return self.proj((F.leaky_relu(h, self.leak) if self.leak else F.relu(h)).square())
