"""What clipping and the optimizers launch: they are not compiled, so each operator call is at least one kernel.

The calls are counted on fake tensors, as rank 0 of a run's ranks makes them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.utils._foreach_utils as foreach_utils
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.gpu_program.workload import TrainingOnScored, Workload
from components.gpt import GPT
from components.optimizer import build_optimizer

MAX_TENSORS = (110, 64, 48, 36, 30)
"""Tensors a launch for 1 to 5 lists of them; this and the next two from torch's MultiTensorApply.cuh."""

MAX_CHUNKS = 320
CHUNK = 65_536


@dataclass
class Call:
    """An operator's calls in one optimizer step.

    Args:
        name: The operator.
        calls: How often it is called.
        launches: Kernels that it launches.
        bytes: What they read and write.
        operations: Floating-point operations in matrix products.
        gathered: Bytes that a collective receives from other ranks.
    """

    name: str
    calls: int = 0
    launches: int = 0
    bytes: int = 0
    operations: int = 0
    gathered: int = 0


class CallCounter(TorchDispatchMode):
    """Counts operator calls that do work on the device; views do none."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, Call] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _works(func):
            name = str(func)
            call = self.calls.setdefault(name, Call(name))
            call.calls += 1
            call.launches += launches(name, args, result)
            read, written = tensors((args, kwargs)), tensors(result) or changed(func, args)
            if name.startswith("c10d."):
                call.gathered += sum(t.nbytes for t in tensors(args[0])) - sum(t.nbytes for t in tensors(args[1]))
            else:
                call.bytes += sum(t.nbytes for t in (*read, *written))
            if func._overloadpacket in flop_registry:
                call.operations += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result


def tensors(tree: object) -> list[Tensor]:
    """The tensors in nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def changed(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """The arguments that an operator writes to."""
    arguments = func._schema.arguments
    return tensors([arg for arg, declared in zip(args, arguments, strict=False) if _is_written(declared)])


def _is_written(declared: Any) -> bool:
    return declared.alias_info is not None and declared.alias_info.is_write


def _works(func: Any) -> bool:
    """Whether an operator does work: not if it only makes views or empty tensors."""
    schema = func._schema
    if func.namespace not in ("aten", "c10d"):
        return False
    if any(map(_is_written, schema.arguments)):
        return True
    makes_views = any(declared.alias_info is not None for declared in schema.returns)
    return not makes_views and not schema.name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view"))


def launches(name: str, args: Sequence[Any], result: object) -> int:
    """Kernels of a call: one, or for a list of tensors as many as torch's own packing makes of it."""
    if "_foreach_" not in name and "_fused_" not in name:
        return 1
    lists = [tensors(arg) for arg in args if isinstance(arg, (list, tuple)) and tensors(arg)]
    if "_foreach_" in name and not fits_fast_path(lists):
        return len(lists[0])
    depth = len(lists) + (isinstance(result, (list, tuple)) and bool(tensors(result)))
    by_count = -(-len(lists[0]) // MAX_TENSORS[min(depth, len(MAX_TENSORS)) - 1])
    chunks = sum(math.ceil(t.numel() / CHUNK) for t in lists[0])
    return max(by_count, -(-chunks // MAX_CHUNKS))


def fits_fast_path(lists: Sequence[Sequence[Tensor]]) -> bool:
    """Whether lists of tensors go through one kernel: torch asks for equal dtypes, shapes and strides across them."""
    return all(
        len({(t.dtype, t.size(), t.stride()) for t in row}) == 1 and _is_dense(row[0])
        for row in zip(*lists, strict=True)
    )


def _is_dense(tensor: Tensor) -> bool:
    spanned = 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    return tensor.numel() in (0, spanned)


@contextlib.contextmanager
def fakes_in_lists() -> Iterator[None]:
    """Let clipping take fake gradients as a list, as it takes real ones, instead of one by one."""
    foreach_utils._foreach_supported_types.append(FakeTensor)
    try:
        yield
    finally:
        foreach_utils._foreach_supported_types.remove(FakeTensor)


@contextlib.contextmanager
def ranks(num_ranks: int) -> Iterator[None]:
    """A process group of ranks that are not there: its collectives return at once."""
    if num_ranks == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def count_update(network: GPT, mode: Any, workload: Workload) -> list[dict[str, Any]]:
    """Calls of clipping and the optimizers in a steady step of a network on the fake device."""
    with mode, ranks(workload.num_ranks):
        optimizer = build_optimizer(network, workload.optimizer_config())

        def update() -> None:
            nn.utils.clip_grad_norm_(network.parameters(), workload.clip)
            optimizer.step()

        return _counted_steadily(network, update)


def count_update_on_scored(network: GPT, mode: Any, training: TrainingOnScored) -> list[dict[str, Any]]:
    """Calls between the backward pass and the next step when a scorer trains: `ScoreFirstTraining`'s own.

    The sum of the gradients over the ranks is left out; what lays them out for it is in.
    """
    with mode:
        optimizer = torch.optim.SGD(network.parameters(), lr=training.lr, momentum=training.momentum)

        def update() -> None:
            torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)  # test_time_training.MAX_GRADIENT_NORM
            optimizer.step()

        return _counted_steadily(network, update)


def _counted_steadily(network: nn.Module, update: Callable[[], None]) -> list[dict[str, Any]]:
    """Calls of an optimizer's second step: the first makes its state."""
    counter = CallCounter()
    with fakes_in_lists():
        for counting in (contextlib.nullcontext(), counter):
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
            with counting:
                update()
    return [asdict(call) for call in counter.calls.values()]
