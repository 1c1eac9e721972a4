"""One Muon step on the record's matrices, ours and ``torch.optim.Muon``'s: ``python -m benchmarks.muon``."""

from __future__ import annotations

import dataclasses

import torch
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import device, device_name, in_turn, save, table
from components.gpt import GPT, GPTConfig
from components.muon import Muon
from components.optimizer import OptimizerConfig, build_optimizer


def random_matrices(config: GPTConfig) -> list[torch.nn.Parameter]:
    """Random matrices of the shapes that Muon updates in a network, with random gradients."""
    with torch.device("meta"):
        groups = build_optimizer(GPT(config), OptimizerConfig()).param_groups
    shapes = [p.shape for group in groups if group["name"] == "matrices" for p in group["params"]]
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, device=device())) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return matrices


def optimizers(matrices: list[torch.nn.Parameter]) -> dict[str, Optimizer]:
    """Our Muon and torch's."""
    return {
        "ours, batched": Muon(matrices, lr=0.025, momentum=0.95, weight_decay=0.04),
        "torch.optim.Muon": torch.optim.Muon(
            matrices, lr=0.025, momentum=0.95, weight_decay=0.04, adjust_lr_fn="original"
        ),
    }


def operator_calls(optimizer: Optimizer) -> int:
    """Operators that one step calls, not counting those called by other operators."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        optimizer.step()
    return sum(
        event.name.startswith("aten::")
        and not (event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::"))
        for event in recorded.events()
    )


def main() -> None:
    """Compare the operator calls and the time of a step."""
    # The number of calls depends on the number of matrices and shapes, not on their size. Timing all the full-size
    # matrices with torch's Muon would take minutes on a CPU without bfloat16 instructions.
    cuda = device().type == "cuda"
    full = GPTConfig()
    narrow = random_matrices(dataclasses.replace(full, model_dim=32, num_heads=2, num_kv_heads=1))
    calls = {name: operator_calls(optimizer) for name, optimizer in optimizers(narrow).items()}
    timed = random_matrices(full if cuda else dataclasses.replace(full, num_layers=1))
    times = in_turn({name: optimizer.step for name, optimizer in optimizers(timed).items()}, repeats=3)
    print(f"calls for {len(narrow)} matrices, milliseconds for {len(timed)} on {device_name()}")
    print(
        table(
            ("one step", "operator calls", "milliseconds"),
            [(name, calls[name], f"{1000 * times[name]:.1f}") for name in times],
        )
    )
    save("muon", {"matrices": len(narrow), "operator_calls": calls, "timed_matrices": len(timed), "seconds": times})


if __name__ == "__main__":
    main()
