"""The MLP's activations by hand."""

import pytest
import torch
import torch.nn.functional as F

from components.mlp import MLP, squared_relu


@pytest.mark.parametrize(("leak", "expected"), [(0.0, [0.0, 9.0]), (0.5, [1.0, 9.0]), (1.0, [4.0, 9.0])])
def test_both_sides_are_squared_the_left_one_leaking(leak: float, expected: list[float]) -> None:
    mlp = MLP(2, 2, leak)
    with torch.no_grad():
        mlp.fc.weight.copy_(torch.eye(2))
        mlp.proj.weight.copy_(torch.eye(2))
    assert mlp(torch.tensor([[-2.0, 3.0]]))[0].tolist() == expected


@pytest.mark.parametrize("leak", [0.0, 0.5, 1.0])
def test_gradients_are_the_numerical_ones(leak: float) -> None:
    torch.manual_seed(0)
    mlp, x = MLP(3, 5, leak).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_the_activation_is_torch_s_own_and_keeps_one_tensor_for_backward(leak: float) -> None:
    z = torch.randn(1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = squared_relu(z, leak)
    expected, upstream = F.leaky_relu(z, leak).square(), torch.linspace(-1, 1, 1000)
    torch.testing.assert_close(found, expected)
    [found_gradient], [gradient] = (torch.autograd.grad(y, z, upstream) for y in (found, expected))
    torch.testing.assert_close(found_gradient, gradient, atol=1e-6, rtol=1e-6)
    assert [tensor.data_ptr() for tensor in kept] == [(z if leak else found).data_ptr()]
