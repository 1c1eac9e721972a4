"""Muon against the one-by-one update, torch.optim.Muon's own iteration and the algebra it approximates."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from components.muon import NEWTON_SCHULZ, Muon, orthogonalize, orthogonalize_all

STEPS = (NEWTON_SCHULZ,) * 5
SHAPES = [(8, 8), (16, 8), (8, 16), (8, 8), (4, 32), (32, 4), (8, 8)]


def one_by_one(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Keller Jordan's iteration on one matrix, from its published formula, in float64."""
    a, b, c = NEWTON_SCHULZ
    x = matrix.double()
    if x.size(0) > x.size(1):
        return one_by_one(matrix.T, steps).T
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def matrices(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_batched_iteration_equals_the_one_by_one_formula_within_bfloat16() -> None:
    for matrix, result in zip(matrices(), orthogonalize_all(matrices(), STEPS), strict=True):
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.double(), one_by_one(matrix), atol=0.05, rtol=0)


def test_singular_values_come_near_one() -> None:
    [result] = orthogonalize(torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(0)), STEPS)
    singular_values = torch.linalg.svdvals(result.float())
    assert singular_values.min() > 0.5
    assert singular_values.max() < 1.4


def test_step_is_momentum_nesterov_decay_and_scale() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(16, 4))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, buffer = weight.detach().double().clone(), torch.zeros(16, 4, dtype=torch.float64)
    for seed in range(3):
        grad = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        weight.grad = grad.clone()
        optimizer.step()
        buffer = 0.9 * buffer + grad.double()
        update = one_by_one((grad.double() + 0.9 * buffer).float())
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (16 / 4) ** 0.5 * update
    torch.testing.assert_close(weight.detach().double(), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"].double(), buffer)


def test_matches_torch_s_muon_on_the_first_step() -> None:
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(24, 16))
    theirs = torch.nn.Parameter(ours.detach().clone())
    ours.grad = torch.randn(24, 16)
    theirs.grad = ours.grad.clone()
    Muon([ours], lr=0.02, momentum=0.0, weight_decay=0.1).step()
    torch.optim.Muon([theirs], lr=0.02, momentum=0.0, weight_decay=0.1, adjust_lr_fn="original").step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_vectors_are_refused() -> None:
    with pytest.raises(AssertionError, match="Muon is for matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9, weight_decay=0.0)


def _rank(rank: int, world_size: int, port: int, alone: list[torch.Tensor]) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    for mine, theirs in zip(orthogonalize_all(matrices(), STEPS), alone, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0)
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_share_the_work_and_agree_with_one(world_size: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (world_size, port, orthogonalize_all(matrices(), STEPS)), nprocs=world_size)
