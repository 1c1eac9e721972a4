"""The optimizers' operator calls are counted as torch launches them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_program.eager import Call, CallCounter, count_update, count_update_on_scored, fits_fast_path
from benchmarks.gpu_program.fake_cuda import move
from benchmarks.gpu_program.workload import Workload
from components.muon import orthogonalize
from tests.support import ROOT


def counted(work: Callable[[], object]) -> dict[str, Call]:
    with CallCounter() as counter:
        work()
    return counter.calls


def test_views_and_empty_tensors_are_no_work() -> None:
    x = torch.zeros(4, 6)
    assert not counted(lambda: (x.view(24), x.mT, x[1:], torch.empty(3), x.new_empty(3), x.detach()))


def test_bytes_are_those_read_and_those_written() -> None:
    x, y = torch.zeros(10), torch.zeros(10)
    [addition] = counted(lambda: x + y).values()
    assert (addition.calls, addition.launches, addition.bytes) == (1, 1, 3 * 40)
    [in_place] = counted(lambda: x.add_(y)).values()
    assert in_place.bytes == 3 * 40


def test_operations_are_those_of_torchs_counter() -> None:
    x = torch.randn(3, 8, 16)
    with FlopCounterMode(display=False) as expected:
        orthogonalize(x, ((3.0, -4.0, 2.0),) * 5)
    calls = counted(lambda: orthogonalize(x, ((3.0, -4.0, 2.0),) * 5))
    assert sum(call.operations for call in calls.values()) == expected.get_total_flops() > 0


def rows(num: int, *size: int) -> list[Tensor]:
    return [torch.zeros(size) for _ in range(num)]


def test_lists_of_tensors_are_packed() -> None:
    for tensors, num_launches in ((rows(110, 2), 1), (rows(111, 2), 2), (rows(1, 65_536 * 320 + 1), 2)):
        [call] = counted(lambda tensors=tensors: torch._foreach_mul_(tensors, 2.0)).values()  # type: ignore[misc]
        assert call.launches == num_launches
    a, b = rows(65, 2), rows(65, 2)
    [call] = counted(lambda: torch._foreach_add_(a, b)).values()  # two lists: 64 a launch
    assert call.launches == 2


def test_lists_of_unlike_tensors_are_not_packed() -> None:
    plain, transposed = rows(5, 2, 3), [row.mT for row in rows(5, 3, 2)]
    [call] = counted(lambda: torch._foreach_add_(plain, transposed)).values()
    assert call.launches == 5
    assert fits_fast_path([transposed, transposed])
    assert not fits_fast_path([rows(1, 2), [torch.zeros(2, dtype=torch.bfloat16)]])
    assert not fits_fast_path([[torch.zeros(4)[::2]]])


@pytest.mark.parametrize("overlay", [(), ("one_gpu",)])
def test_the_records_update(overlay: tuple[str, ...]) -> None:
    workload = Workload([ROOT / "configs" / f"{name}.yaml" for name in ("record_10l", *overlay)])
    network, mode = workload.network(), FakeTensorMode(allow_non_fake_inputs=True)
    move(network, mode, "cpu")  # fake tensors of a CPU build cannot do everything on CUDA
    calls = {call["name"]: call for call in count_update(network, mode, workload)}
    # Fused AdamW takes a list for each of its two groups; clipping takes all gradients at once.
    assert calls["aten._fused_adamw_.default"]["calls"] == 2
    assert "aten.linalg_vector_norm.default" in calls
    assert calls["aten._foreach_norm.Scalar"]["calls"] == 1
    # 5 iterations of 3 products on 4 shapes: 512 x 512, 256 x 512, 512 x 1,536 and the hash table's 512 x 128.
    assert calls["aten.bmm.default"]["calls"] == 5 * 4
    assert calls["aten.baddbmm.default"]["calls"] == 2 * 5 * 4
    gathered = sum(call["gathered"] for call in calls.values())
    if workload.num_ranks == 1:
        assert gathered == 0
        return
    # 20 matrices of each shape, and one of the hash table's. Each of eight ranks computes 3 of 20, which pads them to
    # 24, and gets the others' in bfloat16.
    shares = 3 * (512 * 512 + 256 * 512 + 512 * 1536) + 512 * 128
    assert gathered == 2 * 7 * shares


def test_the_update_of_training_on_what_was_scored() -> None:
    workload = Workload([ROOT / "configs" / "record_sp8192_ttt.yaml"])
    network, mode = workload.network(), FakeTensorMode(allow_non_fake_inputs=True)
    move(network, mode, "cpu")
    assert workload.training_on_scored is not None
    calls = {call["name"]: call for call in count_update_on_scored(network, mode, workload.training_on_scored)}
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert calls["aten.cat.default"]["bytes"] == 2 * size
    # Momentum decays (read, written), takes the gradients (and another read), and is taken from the weights; clipping
    # scales the gradients. On a CPU each parameter has its own call.
    in_place = [call for name, call in calls.items() if "mul_" in name or "add_" in name]
    assert sum(call["bytes"] for call in in_place) == pytest.approx((2 + 3 + 3 + 2) * size, rel=1e-4)
