"""Input embeddings other than the token table: hashed token pairs, and mixing in the token before.

Shape suffixes: B sequences, T positions, C model width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.layers import Embedding, Linear


class BigramHash(nn.Module):
    """An embedding of each token's hashed pair with the token before it."""

    optimizer_groups: ClassVar = {"scale": "scalars"}

    def __init__(self, num_buckets: int, dim: int, model_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.embed = Embedding(num_buckets, dim)
        self.proj = Linear(dim, model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))
        # The table starts at zero, so the projection must not, at any width: if both are zero, neither gets a gradient.
        nn.init.zeros_(self.embed.weight)
        with torch.no_grad():
            self.proj.weight.mul_(1 / math.sqrt(2 * num_layers))

    def buckets(self, ids_BT: Tensor) -> Tensor:
        """Hash bucket of every position, int32 [B, T]; a sequence's first position has the last bucket to itself."""
        ids = ids_BT.to(torch.int32)
        pairs = torch.bitwise_xor(36313 * ids[:, 1:], 27191 * ids[:, :-1]) % (self.num_buckets - 1)
        return F.pad(pairs, (1, 0), value=self.num_buckets - 1)

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Embedding [B, T, C] of the pairs, in ``dtype``."""
        h = self.proj(self.embed(self.buckets(ids_BT)).to(dtype))
        return h * self.scale.to(dtype)


def _previous(x_BTC: Tensor) -> Tensor:
    """Each position's predecessor; zeros for position 0."""
    return F.pad(x_BTC[:, :-1], (0, 0, 1, 0))


class SmearGate(nn.Module):
    """Mix every position with the one before it, by a learned share per channel."""

    optimizer_groups: ClassVar = {"gate": "scalars"}

    def __init__(self, model_dim: int, across_documents: bool, bos_id: int) -> None:
        super().__init__()
        self.across_documents = across_documents
        self.bos_id = bos_id
        self.gate = nn.Parameter(torch.zeros(model_dim))

    def forward(self, x_BTC: Tensor, ids_BT: Tensor) -> Tensor:
        """``(1 - g) x_t + g x_{t-1}``, with zeros before position 0 (and before a document, if so configured)."""
        gate = torch.sigmoid(self.gate).to(x_BTC.dtype)
        if not self.across_documents:
            gate = gate * (ids_BT != self.bos_id).unsqueeze(-1)
        return (1 - gate) * x_BTC + gate * _previous(x_BTC)


class ContentSmearGate(nn.Module):
    """Add to every position a share of the one before it, set by the position's own first channels.

    A document's first token takes nothing, because the text before it is another document's.

    Args:
        width: Channels that set the share.
        bos_id: The id that begins a document.
    """

    optimizer_groups: ClassVar = {"scale": "scalars"}

    def __init__(self, width: int, bos_id: int) -> None:
        super().__init__()
        self.bos_id = bos_id
        self.gate = Linear(width, 1, "scalars")
        self.scale = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.gate.weight)

    def forward(self, x_BTC: Tensor, ids_BT: Tensor) -> Tensor:
        """``x_t + scale * sigmoid(w . x_t[:width]) * x_{t-1}``, except where a document begins."""
        share_BT1 = self.scale * torch.sigmoid(self.gate(x_BTC[..., : self.gate.in_features]))
        share_BT1 = share_BT1 * (ids_BT != self.bos_id).unsqueeze(-1)
        return x_BTC + share_BT1.to(x_BTC.dtype) * _previous(x_BTC)
