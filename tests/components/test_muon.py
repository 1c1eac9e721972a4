"""Muon against the one-by-one update, torch.optim.Muon's own iteration and the algebra it approximates."""

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

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
        assert result.is_contiguous()
        assert result.dtype == matrix.dtype
        torch.testing.assert_close(result.double(), one_by_one(matrix), atol=0.05, rtol=0)


class Operators(TorchDispatchMode):
    """Lists the operators called, other than those that only look at a tensor anew, with their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, list[list[torch.Tensor]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            lists = [arg for arg in args if isinstance(arg, list) and isinstance(arg[0], torch.Tensor)]
            self.called.append((str(func), lists))
        return result


def operators_of_a_step(
    shapes: list[tuple[int, int]], row_normalize: bool
) -> list[tuple[str, list[list[torch.Tensor]]]]:
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = Muon(weights, lr=0.1, weight_decay=0.1, row_normalize=row_normalize)
    for _ in range(2):  # the first step makes the buffers
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        with Operators() as operators:
            optimizer.step()
    return operators.called


@pytest.mark.parametrize("row_normalize", [False, True])
def test_a_step_calls_as_many_operators_whatever_the_number_of_matrices(row_normalize: bool) -> None:
    called, twice = (operators_of_a_step(times * SHAPES, row_normalize) for times in (1, 2))
    assert [name for name, _ in called] == [name for name, _ in twice]
    # What else torch's foreach operators would do one tensor after the other (ATen/native/ForeachUtils.h).
    for name, lists in called:
        if "_foreach" in name:
            for tensors in zip(*lists, strict=True):
                assert len({(t.dtype, t.stride()) for t in tensors}) == 1, name


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
