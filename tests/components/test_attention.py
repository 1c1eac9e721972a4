"""Attention's parts by hand-worked cases, properties and numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from components.attention import Attention, exclude_own_value, norm_and_rotate, rotary_tables, rotate
from components.layers import rms_norm


def attention(exclusive: bool = False, gate_width: int = 0) -> Attention:
    """Two query heads of 4 channels over one key/value head, the projection an identity, so that heads are seen."""
    torch.manual_seed(0)
    made = Attention(
        model_dim=8, num_heads=2, num_kv_heads=1, initial_gain=1.5, exclusive=exclusive, gate_width=gate_width
    )
    with torch.no_grad():
        made.proj.weight.copy_(torch.eye(8))
    return made.double()


def attend(module: Attention, x: torch.Tensor, num_queries: int) -> torch.Tensor:
    cos, sin = (table.double() for table in rotary_tables(x.size(1), 4, 100.0, x.device))
    return module(x, cos, sin, num_queries)


def stream(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_first_channels_turn_in_halves_and_the_others_pass() -> None:
    cos, sin = rotary_tables(6, 4, 100.0, torch.device("cpu"))
    x = torch.tensor([1.0, 0.0, 0.0, 2.0, 5.0, 6.0]).expand(1, 1, 6, 6)
    # Channels 0 and 2 turn by t, 1 and 3 by t / 10; the second of a pair follows the first.
    expected = [math.cos(5), 2 * math.sin(0.5), -math.sin(5), 2 * math.cos(0.5), 5.0, 6.0]
    assert rotate(x, cos, sin)[0, 0, 5].tolist() == pytest.approx(expected, abs=1e-6)


def plain_norm_and_rotate(x: torch.Tensor, gain: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The formula with torch's own norm, differentiated by autograd."""
    normed = F.rms_norm(x, (x.size(-1),), eps=torch.finfo(torch.float32).eps) * gain[:, None]
    return rotate(normed.transpose(1, 2), cos, sin).transpose(1, 2)


@pytest.mark.parametrize("num_rotated", [4, 16])
@pytest.mark.parametrize("with_gain", [False, True])
def test_norm_gain_and_rotation_are_the_plain_formula_with_its_gradients(with_gain: bool, num_rotated: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 16, requires_grad=True)
    gain = torch.randn(3, requires_grad=True) if with_gain else torch.ones(3)
    tables = rotary_tables(6, num_rotated, 100.0, x.device)
    found, expected = norm_and_rotate(x, gain if with_gain else None, *tables), plain_norm_and_rotate(x, gain, *tables)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    upstream, leaves = torch.randn_like(found), [x, gain] if with_gain else [x]
    gradients = (torch.autograd.grad(y, leaves, upstream) for y in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_gradients_of_norm_gain_and_rotation_are_the_numerical_ones() -> None:
    x, gain = stream(2, 3, 2, 6).requires_grad_(), stream(2).requires_grad_()
    assert torch.autograd.gradcheck(norm_and_rotate, (x, gain, *rotary_tables(3, 4, 100.0, x.device)))
    # So small that the norm's epsilon counts.
    assert torch.autograd.gradcheck(
        lambda x: norm_and_rotate(1e-4 * x, None, *rotary_tables(3, 6, 100.0, x.device)), (x,)
    )


def test_what_stands_along_the_own_value_is_left_out() -> None:
    y = torch.tensor([[3.0, 4.0], [1.0, 1.0], [3.0, 4.0], [2.0, 0.0]]).view(1, 4, 1, 2)
    v = torch.tensor([[2.0, 0.0], [0.0, -5.0]]).view(1, 2, 1, 2)
    # Heads 0 and 1 share the first value, heads 2 and 3 the second.
    assert exclude_own_value(y, v).view(4, 2).tolist() == [[0.0, 4.0], [0.0, 1.0], [3.0, 0.0], [2.0, 0.0]]
    assert torch.equal(exclude_own_value(y, torch.zeros_like(v)), y)


def test_exclusive_heads_are_orthogonal_to_their_position_s_value() -> None:
    module, x = attention(exclusive=True), stream(2, 6, 8)
    heads = attend(module, x, 6).unflatten(-1, (2, 4))
    along = torch.einsum("bthd,btd->bth", heads, module.c_v(x))
    assert along.abs().max() < 1e-12
    assert heads[:, 0].abs().max() < 1e-12  # the first position sees nothing but its own value
    assert heads[:, 1:].abs().amax(-1).min() > 1e-3


def test_each_head_is_scaled_by_twice_a_sigmoid_of_the_first_channels() -> None:
    plain, gated, x = attention(), attention(gate_width=3), stream(1, 5, 8)
    assert gated.gate is not None
    gated.load_state_dict({**plain.state_dict(), "gate.weight": torch.zeros(2, 3)})
    torch.testing.assert_close(attend(gated, x, 5), attend(plain, x, 5), atol=0, rtol=0)  # it starts at 1
    x[0, 3, :3] = torch.tensor([math.log(3), 0.0, 1.0])
    with torch.no_grad():
        gated.gate.weight.copy_(torch.tensor([[1.0, 7.0, 0.0], [0.0, 9.0, -math.log(3)]]))
    # 2 sigmoid(ln 3) = 1.5 and 2 sigmoid(-ln 3) = 0.5
    expected = attend(plain, x, 5)[0, 3] * torch.tensor([1.5] * 4 + [0.5] * 4)
    torch.testing.assert_close(attend(gated, x, 5)[0, 3], expected)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_the_last_queries_alone_give_what_all_of_them_give(num_queries: int) -> None:
    module, x = attention(exclusive=True, gate_width=3), stream(2, 6, 8)
    torch.nn.init.normal_(module.gate.weight)
    torch.testing.assert_close(attend(module, x, num_queries), attend(module, x, 6)[:, -num_queries:])


def test_gradients_of_exclusion_and_gate_are_the_numerical_ones() -> None:
    y, v = stream(1, 4, 3, 2).requires_grad_(), stream(1, 2, 3, 2).add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(exclude_own_value, (y, v))
    module, x = attention(exclusive=True, gate_width=3), stream(1, 4, 8).requires_grad_()
    torch.nn.init.normal_(module.gate.weight)
    parameters = (module.gate.weight, module.c_v.weight, module.q_gain)

    def output(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return attend(module, rms_norm(x), 4)

    assert torch.autograd.gradcheck(output, (x, *parameters))


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_output_keeps_the_input_s_type_under_autocast(exclusive: bool) -> None:
    module, x = attention(exclusive=exclusive, gate_width=3).float(), stream(1, 6, 8).bfloat16()
    cos, sin = (table.bfloat16() for table in rotary_tables(6, 4, 100.0, x.device))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x, cos, sin, 6).dtype == torch.bfloat16
