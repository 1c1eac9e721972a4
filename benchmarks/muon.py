"""One Muon step on the record's matrices, ours beside ``torch.optim.Muon``: ``python -m benchmarks.muon``."""

from __future__ import annotations

import torch
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import device, device_name, in_turn, save, table
from components.gpt import GPT, GPTConfig
from components.muon import Muon
from components.optimizer import OptimizerConfig, build_optimizer


def record_matrices() -> list[torch.nn.Parameter]:
    """Random matrices of the shapes that Muon updates in the record run, with random gradients."""
    # On a CPU those of one layer: torch's Muon takes minutes for all of them where bfloat16 instructions are missing.
    config = GPTConfig() if device().type == "cuda" else GPTConfig(num_layers=1)
    with torch.device("meta"):
        groups = build_optimizer(GPT(config), OptimizerConfig()).param_groups
    shapes = [p.shape for group in groups if group["name"] == "matrices" for p in group["params"]]
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, device=device())) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return matrices


def operator_calls(optimizer: Optimizer) -> int:
    """Operators that one step calls, those that they call themselves not counted."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        optimizer.step()
    return sum(
        event.name.startswith("aten::")
        and not (event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::"))
        for event in recorded.events()
    )


def main() -> None:
    """Compare operator calls and seconds of a step."""
    matrices = record_matrices()
    optimizers = {
        "ours, batched": Muon(matrices, lr=0.025, momentum=0.95, weight_decay=0.04),
        "torch.optim.Muon": torch.optim.Muon(
            matrices, lr=0.025, momentum=0.95, weight_decay=0.04, adjust_lr_fn="original"
        ),
    }
    times = in_turn({name: optimizer.step for name, optimizer in optimizers.items()}, repeats=3)
    calls = {name: operator_calls(optimizer) for name, optimizer in optimizers.items()}
    print(f"{len(matrices)} matrices on {device_name()}")
    print(
        table(
            ("one step", "operator calls", "milliseconds"),
            [(name, calls[name], f"{1000 * times[name]:.1f}") for name in optimizers],
        )
    )
    save("muon", {"matrices": len(matrices), "operator_calls": calls, "seconds": times})


if __name__ == "__main__":
    main()
