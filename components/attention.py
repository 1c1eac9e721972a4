"""Causal grouped-query attention, its rotary positions, and the optional steps between its heads and its projection.

Shape suffixes: B sequences, T positions, S of them with queries (the last ones), C model width, H query heads,
K key/value heads, G query heads per key/value head, D head width, R rotated channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from components.layers import RMS_EPS, JointLinear, Linear

if TYPE_CHECKING:
    from components.generation import StepCache

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""The implementations of attention that torch has, by name."""


def only_backends(names: Sequence[str]) -> AbstractContextManager[None]:
    """A context in which attention is computed by the first of these backends that supports it."""
    return sdpa_kernel([BACKENDS[name] for name in names], set_priority=True)


def rotary_tables(num_positions: int, num_channels: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, R / 2] of the rotary embedding (Su et al., arXiv 2104.09864), float32."""
    frequencies = base ** -(torch.arange(0, num_channels, 2, device=device, dtype=torch.float32) / num_channels)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R channels of each head by their positions' angles; leave the rest.

    The first half a of the R channels is paired with the second half b: ``[a cos + b sin, b cos - a sin]``.

    Args:
        x: Queries or keys, [..., D].
        cos: Cosines of the angles, broadcastable to [..., R / 2].
        sin: Their sines.
    """
    half = cos.size(-1)
    a, b, passed = x.split((half, half, x.size(-1) - 2 * half), dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin, passed), dim=-1)


class _NormAndRotate(torch.autograd.Function):
    """See `norm_and_rotate`.

    A head x becomes ``f rotate(x)`` with f its gain over its root mean square rms, of D channels. With u the gradient
    turned back by the angles and s = x . u, the gradient of x is ``f u - x f s / (D rms^2)`` and that of the gain the
    sum of ``s / rms``. So one pass over the data computes both.
    """

    @staticmethod
    def forward(ctx: Any, x_BTHD: Tensor, gain_H: Tensor | None, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTHD, gain_H, cos_TR, sin_TR)
        rotated = rotate(x_BTHD, cos_TR.unsqueeze(1), sin_TR.unsqueeze(1))
        return (rotated * _gained(_inverse_rms(x_BTHD), gain_H)).to(x_BTHD.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHD, gain_H, cos_TR, sin_TR = ctx.saved_tensors
        inverse_rms = _inverse_rms(x_BTHD)
        turned = rotate(gradients[0], cos_TR.unsqueeze(1), -sin_TR.unsqueeze(1))
        gain_share = (x_BTHD * turned).sum(-1, keepdim=True) * inverse_rms
        along = gain_share * inverse_rms / x_BTHD.size(-1)
        x_gradient = (turned - x_BTHD * along) * _gained(inverse_rms, gain_H)
        gain_gradient = None if gain_H is None else gain_share.sum((0, 1, 3)).to(gain_H.dtype)
        return x_gradient.to(x_BTHD.dtype), gain_gradient, None, None


def _inverse_rms(x_BTHD: Tensor) -> Tensor:
    """One over the root mean square of each head, [B, T, H, 1], in float32 or a wider type."""
    # Heads themselves are not converted as a whole: the compiler would write them out in float32 because they are read
    # so often. Products with these and with the tables convert them.
    squares = x_BTHD.to(torch.promote_types(x_BTHD.dtype, torch.float32)).square()
    return torch.rsqrt(squares.mean(-1, keepdim=True) + RMS_EPS)


def _gained(inverse_rms: Tensor, gain_H: Tensor | None) -> Tensor:
    return inverse_rms if gain_H is None else inverse_rms * gain_H.unsqueeze(-1)


def norm_and_rotate(x_BTHD: Tensor, gain_H: Tensor | None, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Queries or keys of unit root mean square, times their head's gain if any, rotated.

    One function with its own backward pass, because the compiler makes one kernel of each: the parts' own backward
    passes would read the data again for the gain. It cannot be differentiated twice.

    Args:
        x_BTHD: Queries or keys.
        gain_H: Gain of each head, or None.
        cos_TR: Cosines of the rotary embedding, [T, R / 2].
        sin_TR: Its sines.

    Returns:
        [B, T, H, D] in the input's dtype, computed in float32 or a wider type.
    """
    rotated: Tensor = _NormAndRotate.apply(x_BTHD, gain_H, cos_TR, sin_TR)
    return rotated


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


def _mask(num_queries: int, num_positions: int, device: torch.device) -> Tensor | None:
    """Which positions the last ones see, bool [S, T]; None for all queries, which have the backends' own causal mask.

    That mask assumes that the first query is at position 0.
    """
    if num_queries == num_positions:
        return None
    mask_ST = torch.ones(num_queries, num_positions, dtype=torch.bool, device=device)
    return mask_ST.tril(num_positions - num_queries)


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
        self.kv = JointLinear((self.c_k, self.c_v))
        self.proj = Linear(model_dim, model_dim)
        self.q_gain = nn.Parameter(torch.full((num_heads,), initial_gain))
        self.gate = Linear(gate_width, num_heads, "scalars") if gate_width else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)

    def backend(self, num_positions: int, num_queries: int, dtype: torch.dtype) -> str | None:
        """The backend that torch chooses for queries from the last positions; None if no allowed one supports them."""
        device = self.q_gain.device
        needs_gradient = torch.is_grad_enabled()

        def heads(number: int, length: int) -> Tensor:
            made = torch.empty(
                1, length, number, self.head_dim, dtype=dtype, device=device, requires_grad=needs_gradient
            )
            return made.transpose(1, 2)

        mask_ST = _mask(num_queries, num_positions, device)
        try:
            chosen = SDPBackend(
                torch._fused_sdp_choice(
                    heads(self.num_heads, num_queries),
                    heads(self.num_kv_heads, num_positions),
                    heads(self.num_kv_heads, num_positions),
                    attn_mask=mask_ST,
                    is_causal=mask_ST is None,
                    enable_gqa=self.num_kv_heads != self.num_heads,
                )
            )
        except RuntimeError:  # a CPU raises where a GPU answers with an error's number
            return None
        return next((name for name, backend in BACKENDS.items() if backend == chosen), None)

    def _project(self, x_BTC: Tensor, num_queries: int) -> tuple[Tensor, ...]:
        """Queries of the last positions, keys and values of all: one product if these are the same positions."""
        if num_queries == x_BTC.size(1):
            return self.qkv(x_BTC)
        return self.c_q(x_BTC[:, -num_queries:]), *self.kv(x_BTC)

    def _heads(self, x_BTE: Tensor, num_heads: int) -> Tensor:
        return x_BTE.unflatten(-1, (num_heads, self.head_dim))

    def forward(
        self, x_BTC: Tensor, cos_TR: Tensor, sin_TR: Tensor, num_queries: int, cache: StepCache | None = None
    ) -> Tensor:
        """Attend causally from the last ``num_queries`` positions S; [B, S, C].

        Args:
            x_BTC: The normed stream.
            cos_TR: Cosines of the rotary embedding, [T, R / 2].
            sin_TR: Its sines.
            num_queries: Positions to attend from.
            cache: Keys and values of the positions before, which these T join.
        """
        x_BSC = x_BTC[:, -num_queries:]
        q_BSE, k_BTE, v_BTE = self._project(x_BTC, num_queries)
        q_BSHD = self._heads(q_BSE, self.num_heads)
        # Rotated before the transposition, so that attention's output has the projection's layout and is not copied.
        q_BHSD = norm_and_rotate(q_BSHD, self.q_gain, cos_TR[-num_queries:], sin_TR[-num_queries:]).transpose(1, 2)
        k_BKTD = norm_and_rotate(self._heads(k_BTE, self.num_kv_heads), None, cos_TR, sin_TR).transpose(1, 2)
        v_BKTD = self._heads(v_BTE, self.num_kv_heads).transpose(1, 2)
        own_v_BKSD = v_BKTD[:, :, -num_queries:]
        if cache is not None:
            k_BKTD, v_BKTD = cache.extend(k_BKTD, v_BKTD)
        mask_ST = _mask(num_queries, k_BKTD.size(2), x_BTC.device)
        y_BHSD = F.scaled_dot_product_attention(
            q_BHSD,
            k_BKTD,
            v_BKTD,
            attn_mask=mask_ST,
            is_causal=mask_ST is None,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        if self.exclusive:
            y_BHSD = exclude_own_value(y_BHSD, own_v_BKSD)
        y_BSHD = y_BHSD.transpose(1, 2)
        if self.gate is not None:
            gate_BSH = 2 * torch.sigmoid(self.gate(x_BSC[..., : self.gate.in_features]))
            y_BSHD = y_BSHD * gate_BSH.unsqueeze(-1)
        return self.proj(y_BSHD.flatten(2))
