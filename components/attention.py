"""Causal grouped-query attention, its rotary positions, and the optional steps between its heads and its projection.

Shape suffixes: B sequences, T positions, S of them with queries (the last ones), C model width, H query heads,
K key/value heads, G query heads per key/value head, D head width, R rotated channels of a head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.layers import JointLinear, Linear, rms_norm


def rotary_tables(num_positions: int, num_channels: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, R / 2] of the rotary embedding (Su et al., arXiv 2104.09864), float32."""
    frequencies = base ** -(torch.arange(0, num_channels, 2, device=device, dtype=torch.float32) / num_channels)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first R channels of each head by their positions' angles; leave the rest.

    The first half a of the R channels is paired with the second half b: ``[a cos + b sin, b cos - a sin]``.

    Args:
        x_BHTD: Queries or keys.
        cos_TR: Cosines of the angles, [T, R / 2].
        sin_TR: Their sines.
    """
    half = cos_TR.size(-1)
    a, b, passed = x_BHTD.split((half, half, x_BHTD.size(-1) - 2 * half), dim=-1)
    return torch.cat((a * cos_TR + b * sin_TR, b * cos_TR - a * sin_TR, passed), dim=-1)


def exclude_own_value(y_BHSD: Tensor, v_BKSD: Tensor) -> Tensor:
    """Each head's output minus its component along the position's own value: exclusive self attention.

    ``y - (y . u) u`` with ``u = v / max(|v|, 1e-12)``, v of the query head's key/value head. Gradients flow through u.

    Args:
        y_BHSD: The heads' outputs.
        v_BKSD: The values of the same positions.
    """
    y_BKGSD = y_BHSD.unflatten(1, (v_BKSD.size(1), -1))
    u_BKGSD = F.normalize(v_BKSD, dim=-1).unsqueeze(2)
    along_BKGS = (y_BKGSD * u_BKGSD).sum(-1, keepdim=True)
    return (y_BKGSD - along_BKGS * u_BKGSD).flatten(1, 2).to(y_BHSD.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention over RMS-normed, rotated queries and keys.

    Args:
        model_dim: Width of input and output, in channels.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        initial_gain: Initial gain of each query head.
        exclusive: Whether a head's output leaves out the direction of the position's own value.
        gate_width: Input channels that gate each head's output by twice a sigmoid, 1 at the start; 0 for no gate.
    """

    optimizer_groups: ClassVar = {"q_gain": "scalars"}

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        num_kv_heads: int,
        initial_gain: float,
        exclusive: bool = False,
        gate_width: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = model_dim // num_heads
        self.exclusive = exclusive
        kv_dim = num_kv_heads * self.head_dim
        self.c_q = Linear(model_dim, model_dim)
        self.c_k = Linear(model_dim, kv_dim)
        self.c_v = Linear(model_dim, kv_dim)
        self.qkv = JointLinear((self.c_q, self.c_k, self.c_v))
        self.proj = Linear(model_dim, model_dim)
        self.q_gain = nn.Parameter(torch.full((num_heads,), initial_gain))
        self.gate = Linear(gate_width, num_heads, "scalars") if gate_width else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)

    def _heads(self, x_BTE: Tensor, num_heads: int) -> Tensor:
        return x_BTE.unflatten(-1, (num_heads, self.head_dim)).transpose(1, 2)

    def forward(self, x_BTC: Tensor, cos_TR: Tensor, sin_TR: Tensor, num_queries: int) -> Tensor:
        """Attend causally from the last ``num_queries`` positions S; [B, S, C].

        Args:
            x_BTC: The normed stream.
            cos_TR: Cosines of the rotary embedding, [T, R / 2].
            sin_TR: Its sines.
            num_queries: Positions to attend from.
        """
        x_BSC = x_BTC[:, -num_queries:]
        q_BTE, k_BTE, v_BTE = self.qkv(x_BTC)
        q_BHSD = rms_norm(self._heads(q_BTE[:, -num_queries:], self.num_heads))
        # A gain commutes with rotation. Applying it first avoids keeping unscaled rotated queries for its gradient.
        q_BHSD = rotate(
            q_BHSD * self.q_gain.to(q_BHSD.dtype)[:, None, None], cos_TR[-num_queries:], sin_TR[-num_queries:]
        )
        k_BKTD = rotate(rms_norm(self._heads(k_BTE, self.num_kv_heads)), cos_TR, sin_TR)
        v_BKTD = self._heads(v_BTE, self.num_kv_heads)
        num_positions = x_BTC.size(1)
        mask_ST = None  # the kernels' own causal mask assumes the first query is at position 0
        if num_queries < num_positions:
            mask_ST = torch.ones(num_queries, num_positions, dtype=torch.bool, device=x_BTC.device)
            mask_ST = mask_ST.tril(num_positions - num_queries)
        y_BHSD = F.scaled_dot_product_attention(
            q_BHSD,
            k_BKTD,
            v_BKTD,
            attn_mask=mask_ST,
            is_causal=mask_ST is None,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        if self.exclusive:
            y_BHSD = exclude_own_value(y_BHSD, v_BKTD[:, :, -num_queries:])
        y_BSHD = y_BHSD.transpose(1, 2)
        if self.gate is not None:
            gate_BSH = 2 * torch.sigmoid(self.gate(x_BSC[..., : self.gate.in_features]))
            y_BSHD = y_BSHD * gate_BSH.unsqueeze(-1)
        return self.proj(y_BSHD.flatten(2))
