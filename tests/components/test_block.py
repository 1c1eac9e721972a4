"""The order of layers as the public records have it, and what a block makes of its parts."""

import pytest
import torch

from components.attention import Attention, rotary_tables
from components.block import Block, layer_order
from components.layers import rms_norm
from components.mlp import MLP


@pytest.mark.parametrize(
    ("settings", "encoder", "decoder"),
    [
        ((10, 0, 0, 0), [0, 1, 2, 3, 4], [5, 6, 7, 8, 9]),
        ((11, 3, 5, 0), [0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]),
        ((11, 4, 5, 2), [0, 1, 2, 3, 4, 5, 4], [5, 4, 5, 6, 7, 8, 9, 10]),
        ((11, 3, 5, 2), [0, 1, 2, 3, 4, 5, 3, 4], [5, 3, 4, 5, 6, 7, 8, 9, 10]),
        ((5, 1, 2, 2), [0, 1, 2, 1], [2, 1, 2, 3, 4]),
        ((3, 1, 2, 1), [0, 1], [2, 1, 2]),
        ((2, 0, 0, 1), [0], [0, 1]),
        ((1, 0, 0, 0), [], [0]),
    ],
)
def test_layer_order(settings: tuple[int, int, int, int], encoder: list[int], decoder: list[int]) -> None:
    assert layer_order(*settings) == (encoder, decoder)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_block_is_the_published_formula(parallel: bool) -> None:
    torch.manual_seed(0)
    block = Block(Attention(8, 2, 1, initial_gain=1.5), MLP(8, 16), 8, norm_scale=0.5, parallel=parallel).double()
    for p in block.parameters():
        torch.nn.init.normal_(p)
    x, x0 = torch.randn(2, 1, 6, 8, dtype=torch.float64)
    cos, sin = (table.double() for table in rotary_tables(6, 4, 100.0, x.device))
    z = block.resid_mix[0] * x + block.resid_mix[1] * x0
    attended = z + block.attn_scale * block.attn(0.5 * rms_norm(z), cos, sin, 6)
    seen = z if parallel else attended
    expected = attended + block.mlp_scale * block.mlp(0.5 * rms_norm(seen))
    torch.testing.assert_close(block(x, x0, cos, sin, 6), expected)
    torch.testing.assert_close(block(x, x0, cos, sin, 2), expected[:, -2:])
