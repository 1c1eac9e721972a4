"""One block of the network, and the order in which blocks are run.

Shape suffixes: B sequences, T positions, S of them wanted (the last ones), C model width, R rotated channels of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from components.attention import Attention
from components.layers import rms_norm
from components.mlp import MLP

if TYPE_CHECKING:
    from components.generation import StepCache


class LayerOrder(NamedTuple):
    """Which block each step of a forward pass runs.

    Attributes:
        encoder: Blocks of the first half, whose outputs are kept for the second.
        decoder: Blocks of the second half; each takes the latest output kept, until none is left.
    """

    encoder: list[int]
    decoder: list[int]


def layer_order(num_layers: int, loop_start: int, loop_end: int, num_loops: int) -> LayerOrder:
    """The order of all layers, with those from ``loop_start`` to ``loop_end`` run ``num_loops`` more times in a row.

    The halves divide steps, not layers, so a repeated layer may be in both. The encoder has the smaller half.
    """
    order = list(range(num_layers))
    order[loop_end + 1 : loop_end + 1] = num_loops * order[loop_start : loop_end + 1]
    return LayerOrder(order[: len(order) // 2], order[len(order) // 2 :])


class Block(nn.Module):
    """Attention and MLP on a per-channel mix of the residual stream and the network's input.

    Args:
        attention: Its attention.
        mlp: Its MLP.
        model_dim: Width of the stream, in channels.
        norm_scale: Multiplier of the normed inputs of attention and MLP.
        parallel: Whether the MLP reads the same input as attention, instead of the stream after attention.
    """

    optimizer_groups: ClassVar = {"attn_scale": "scalars", "mlp_scale": "scalars", "resid_mix": "scalars"}

    def __init__(
        self, attention: Attention, mlp: MLP, model_dim: int, norm_scale: float = 1.0, parallel: bool = False
    ) -> None:
        super().__init__()
        self.norm_scale = norm_scale
        self.parallel = parallel
        self.attn = attention
        self.mlp = mlp
        self.attn_scale = nn.Parameter(torch.ones(model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(model_dim), torch.zeros(model_dim))))

    def _norm(self, x_BTC: Tensor) -> Tensor:
        normed_BTC = rms_norm(x_BTC)
        return normed_BTC if self.norm_scale == 1 else self.norm_scale * normed_BTC

    def forward(
        self,
        x_BTC: Tensor,
        x0_BTC: Tensor,
        cos_TR: Tensor,
        sin_TR: Tensor,
        num_wanted: int,
        cache: StepCache | None = None,
    ) -> Tensor:
        """One step of the residual stream for the last ``num_wanted`` positions S, [B, S, C].

        Args:
            x_BTC: The stream.
            x0_BTC: The network's normed, smeared input.
            cos_TR: Cosines of the rotary embedding, [T, R / 2].
            sin_TR: Its sines.
            num_wanted: Positions needed after this step; keys and values are of all T.
            cache: Keys and values of the positions before, which these T join.
        """
        mix = self.resid_mix.to(x_BTC.dtype)
        x_BTC = mix[0] * x_BTC + mix[1] * x0_BTC
        normed_BTC = self._norm(x_BTC)
        attended_BSC = self.attn(normed_BTC, cos_TR, sin_TR, num_wanted, cache)
        x_BSC = x_BTC[:, -num_wanted:] + self.attn_scale.to(x_BTC.dtype) * attended_BSC
        mlp_input_BSC = normed_BTC[:, -num_wanted:] if self.parallel else self._norm(x_BSC)
        return x_BSC + self.mlp_scale.to(x_BTC.dtype) * self.mlp(mlp_input_BSC)
