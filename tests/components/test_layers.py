"""The network's parts: norms, matrices and tables, and what they see of their weights under late QAT."""

import pytest
import torch
import torch.nn.functional as F

from components.layers import Embedding, JointLinear, Linear, rms_norm, seen_weight
from components.quantization import Nearest, quantize
from components.storage import Storage

WIDTHS = [Storage.INT5, Storage.INT6, Storage.INT8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_scales_to_unit_root_mean_square(dtype: torch.dtype) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.double() / x.double().square().mean(-1, keepdim=True).sqrt()
    normed = rms_norm(x)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), expected, atol=3 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


def test_the_norm_damps_what_is_near_zero_alike_in_every_dtype() -> None:
    # Mean square and float32's epsilon are equal, so the root mean square comes out as sqrt(1/2).
    x = torch.full((1, 64), torch.finfo(torch.float32).eps ** 0.5)
    for dtype in (torch.float32, torch.bfloat16):
        assert rms_norm(x.to(dtype)).float().mean().item() == pytest.approx(0.5**0.5, rel=0.01)


def test_a_matrix_starts_orthogonal_unless_a_side_is_under_64() -> None:
    torch.manual_seed(0)
    wide = Linear(96, 64).weight
    torch.testing.assert_close(wide @ wide.T, torch.eye(64), atol=1e-5, rtol=0)
    small = Linear(96, 63).weight
    bound = 96**-0.5  # torch's own: uniform up to 1 / sqrt(inputs)
    assert bound * 0.95 < small.abs().max() <= bound


def test_a_matrix_computes_in_the_dtype_of_its_input() -> None:
    layer = Linear(8, 4)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16
    assert torch.equal(layer(x), F.linear(x, layer.weight.bfloat16()))
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize("storage", WIDTHS)
def test_a_faked_matrix_is_the_stored_one_bit_for_bit_with_the_gradient_straight_through(storage: Storage) -> None:
    torch.manual_seed(0)
    layer, x = Linear(80, 70), torch.randn(5, 80)
    stored = quantize(layer.weight, storage).dequantize()
    upstream = torch.randn(5, 70)
    layer.fake = (Nearest(), storage)
    y = layer(x)
    y.backward(upstream)
    assert torch.equal(seen_weight(layer), stored)
    assert torch.equal(y, F.linear(x, stored))
    assert not torch.equal(stored, layer.weight)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ x)


def test_a_joint_product_is_each_layer_s_own_with_its_own_gradient_and_storage() -> None:
    torch.manual_seed(0)
    layers, x = [Linear(80, 70), Linear(80, 65), Linear(80, 65)], torch.randn(2, 5, 80, requires_grad=True)
    layers[0].fake, layers[2].fake = (Nearest(), Storage.INT5), (Nearest(), Storage.INT6)
    joint = JointLinear(layers)
    alone = [layer(x) for layer in layers]
    upstream = [torch.randn_like(y) for y in alone]
    leaves = [x, *(layer.weight for layer in layers)]
    for found, expected in zip(joint(x), alone, strict=True):
        torch.testing.assert_close(found, expected)
    expected_gradients = torch.autograd.grad(alone, leaves, upstream)
    for found, expected in zip(torch.autograd.grad(joint(x), leaves, upstream), expected_gradients, strict=True):
        torch.testing.assert_close(found, expected)
    assert not joint.state_dict()  # the weights stay their owner's


@pytest.mark.parametrize("storage", WIDTHS)
def test_a_faked_table_is_the_stored_one_bit_for_bit_with_the_gradient_straight_through(storage: Storage) -> None:
    torch.manual_seed(0)
    table, ids = Embedding(50, 12), torch.tensor([[3, 7, 3], [0, 49, 7]])
    stored = quantize(table.weight, storage).dequantize()
    upstream = torch.randn(2, 3, 12)
    table.fake = (Nearest(), storage)
    rows = table(ids)
    rows.backward(upstream)
    assert torch.equal(rows, stored[ids])
    assert not torch.equal(rows, table.weight[ids])
    expected = torch.zeros(50, 12).index_add(0, ids.flatten(), upstream.flatten(0, 1))
    torch.testing.assert_close(table.weight.grad, expected)


@pytest.mark.parametrize("layer", [Linear(80, 70), Embedding(50, 12)], ids=["matrix", "table"])
def test_the_weight_itself_is_seen_until_it_is_faked_and_after(layer: Linear | Embedding) -> None:
    assert seen_weight(layer) is layer.weight
    layer.fake = (Nearest(), Storage.INT8)
    assert seen_weight(layer) is not layer.weight
    layer.fake = None
    assert seen_weight(layer) is layer.weight
