"""The content SmearGate by hand-worked cases, the documents it must not join, and numerical gradients."""

import math

import torch

from components.embeddings import ContentSmearGate

BOS = 1


def smear(width: int, scale: float) -> ContentSmearGate:
    made = ContentSmearGate(width, BOS).double()
    with torch.no_grad():
        made.scale.fill_(scale)
    return made


def test_a_share_of_the_position_before_is_added_by_the_position_s_own_content() -> None:
    made = smear(width=1, scale=2.0)
    torch.nn.init.ones_(made.gate.weight)
    third = math.log(1 / 2)  # sigmoid(ln(1 / 2)) = 1 / 3
    x = torch.tensor([[[9.0, 6.0], [third, 1.0], [third, 1.0]]], dtype=torch.float64)
    mixed = made(x, torch.tensor([[7, 8, 9]]))
    torch.testing.assert_close(mixed[0, 0], x[0, 0])  # nothing stands before the first
    torch.testing.assert_close(mixed[0, 1], torch.tensor([third + 2 / 3 * 9, 1 + 2 / 3 * 6], dtype=torch.float64))
    # What stands before is taken as it was, not as it was mixed.
    torch.testing.assert_close(mixed[0, 2], torch.tensor([third + 2 / 3 * third, 1 + 2 / 3], dtype=torch.float64))


def test_it_starts_as_nothing() -> None:
    x = torch.randn(1, 4, 6)
    assert torch.equal(ContentSmearGate(3, BOS)(x, torch.tensor([[5, 6, 7, 8]])), x)


def test_a_document_s_first_token_takes_nothing_and_its_second_does() -> None:
    made, ids = smear(width=2, scale=1.0), torch.tensor([[5, 6, BOS, 8]])
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    mixed = made(x, ids)
    assert torch.equal(mixed[:, 2], x[:, 2])
    torch.testing.assert_close(mixed[:, 3], x[:, 3] + 0.5 * x[:, 2])
    changed = x.clone()
    changed[:, :2] += 1
    assert torch.equal(made(changed, ids)[:, 2:], mixed[:, 2:])


def test_its_gradients_are_the_numerical_ones() -> None:
    made = smear(width=3, scale=0.7)
    torch.nn.init.normal_(made.gate.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)

    def output(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return made(x, torch.tensor([[5, 6, BOS, 8]]))

    assert torch.autograd.gradcheck(output, (x, made.scale, made.gate.weight))
