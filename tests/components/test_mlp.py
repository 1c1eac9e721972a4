"""The MLP's activations by hand."""

import pytest
import torch

from components.mlp import MLP


@pytest.mark.parametrize(("leak", "expected"), [(0.0, [0.0, 9.0]), (0.5, [1.0, 9.0]), (1.0, [4.0, 9.0])])
def test_both_sides_are_squared_the_left_one_leaking(leak: float, expected: list[float]) -> None:
    mlp = MLP(2, 2, leak)
    with torch.no_grad():
        mlp.fc.weight.copy_(torch.eye(2))
        mlp.proj.weight.copy_(torch.eye(2))
    assert mlp(torch.tensor([[-2.0, 3.0]]))[0].tolist() == expected


def test_gradients_of_the_leaky_form_are_the_numerical_ones() -> None:
    torch.manual_seed(0)
    mlp, x = MLP(3, 5, 0.5).double(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))
