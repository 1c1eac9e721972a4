"""The training step: its speed, its share of the chip's matrix rate, its memory, and where the time goes.

``python -m benchmarks.train_step`` compares the record's step with that of the same network run eagerly and, on a GPU,
compiled but with torch's own optimizers. On a GPU it runs at full size (98,304 tokens, a rank's share of the record's
batch), on a CPU with fewer layers and tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import (
    TrainingStep,
    device,
    device_name,
    in_turn,
    matrix_rate,
    products_per_token,
    random_network,
    save,
    seconds,
    table,
)
from components.attention import BACKENDS, only_backends
from components.gpt import GPT, GPTConfig
from components.muon import Muon
from components.optimizer import CompositeOptimizer, OptimizerConfig, build_optimizer

RANK_TOKENS = 98_304


def torch_optimizer(network: GPT) -> CompositeOptimizer:
    """The record's parameter groups under torch's own Muon and plain AdamW."""
    muon, adamw = build_optimizer(network, OptimizerConfig()).optimizers
    assert isinstance(muon, Muon)
    [matrices] = muon.param_groups
    return CompositeOptimizer(
        [
            torch.optim.Muon(
                matrices["params"],
                lr=matrices["lr"],
                momentum=matrices["momentum"],
                weight_decay=matrices["weight_decay"],
                adjust_lr_fn="original",
            ),
            AdamW([{"params": group["params"], "lr": group["lr"]} for group in adamw.param_groups]),
        ]
    )


def kept_for_backward(step: TrainingStep) -> int:
    """Bytes that a forward pass keeps for the backward pass, not counting parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in step.network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.forward()
    step.backward()
    step.optimizer.zero_grad()
    return sum(kept.values())


def peak_memory(step: TrainingStep) -> int | None:
    """Peak bytes on the GPU during a step, without those of the other variants; None without a GPU."""
    if device().type != "cuda":
        return None
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    own = [t for t in (*step.network.parameters(), *state) if isinstance(t, torch.Tensor)]
    standing = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds(step)
    return torch.cuda.max_memory_allocated() - standing + sum(t.nbytes for t in own)


def phases(step: TrainingStep, repeats: int) -> dict[str, float]:
    """Median seconds of each part of a step by itself, with the device idle in between."""
    pinned = step.span.pin_memory() if device().type == "cuda" else step.span
    parts: dict[str, Callable[[], object]] = {
        "input to device": lambda: step.load(pinned),
        "forward": step.forward,
        "backward": step.backward,
        "optimizer": step.update,
    }
    return in_turn(parts, repeats)


def heaviest(work: Callable[[], object], num_rows: int | None = None) -> list[dict[str, Any]]:
    """The kernels (on a CPU, operators) that take the most time in some work, all of them by default."""
    cuda = device().type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        seconds(work)
    rows = [
        {
            "name": event.key,
            "calls": event.count,
            "ms": (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3,
        }
        for event in recorded.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:num_rows]


def attention_backends(config: GPTConfig, num_sequences: int, seq_len: int) -> dict[str, float | None]:
    """Seconds of one block's attention, forward and backward, by backend; None if a backend does not support it."""
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    head_dim = config.model_dim // config.num_heads
    heads = (config.num_heads, *2 * (config.num_kv_heads,))

    # Laid out as in a block, so that no backend has to copy what another takes as it is.
    def random(num_heads: int) -> torch.Tensor:
        return torch.randn(num_sequences, seq_len, num_heads, head_dim, device=device(), dtype=dtype).transpose(1, 2)

    q, k, v = (random(num_heads).requires_grad_() for num_heads in heads)
    upstream = random(config.num_heads)

    def attend(backend: str) -> None:
        with only_backends([backend]):
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).backward(upstream)

    times: dict[str, float | None] = {}
    for backend in BACKENDS:
        try:
            times[backend] = in_turn({"attention": lambda b=backend: attend(b)}, repeats=3)["attention"]  # type: ignore[misc]
        except RuntimeError:
            times[backend] = None
    return times


def measure(config: GPTConfig, num_sequences: int, seq_len: int, repeats: int) -> dict[str, Any]:
    """Time every variant, and profile the record's."""

    def variant(compiled: bool, batched: bool) -> TrainingStep:
        network = random_network(config)
        if compiled:
            network.compile(dynamic=False, fullgraph=True)
        optimizer = build_optimizer(network, OptimizerConfig()) if batched else torch_optimizer(network)
        return TrainingStep(network, optimizer, num_sequences, seq_len)

    variants = {
        "eager": variant(compiled=False, batched=True),
        "as in the record run": variant(compiled=True, batched=True),
    }
    if device().type == "cuda":  # torch's Muon takes minutes per step on a CPU without bfloat16 instructions
        variants["compiled, torch's optimizers"] = variant(compiled=True, batched=False)
    times = in_turn(variants, repeats)
    ours = variants["as in the record run"]
    return {
        "num_layers": config.num_layers,
        "num_sequences": num_sequences,
        "seq_len": seq_len,
        "seconds": times,
        "kept_for_backward": {name: kept_for_backward(step) for name, step in variants.items()},
        "peak_memory": {name: peak_memory(step) for name, step in variants.items()},
        "phases": phases(ours, repeats),
        "host_launch_seconds": host_launch(ours) if device().type == "cuda" else None,
        "matrix_rate": matrix_rate(),
        "step_operations": 3 * products_per_token(config, seq_len) * ours.num_tokens,  # backward takes 2 of the 3
        "attention": attention_backends(config, num_sequences, seq_len),
        "heaviest": heaviest(ours, 15),
    }


def host_launch(step: TrainingStep) -> float:
    """Seconds until the host has launched a step, while the device is still at work."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    launched = time.perf_counter() - start
    torch.cuda.synchronize()
    return launched


def report(results: dict[str, Any]) -> str:
    """The results as tables."""
    tokens = results["num_sequences"] * results["seq_len"]
    rows = []
    for name, taken in results["seconds"].items():
        share = results["step_operations"] / taken / results["matrix_rate"]
        peak = results["peak_memory"][name]
        rows.append(
            (
                name,
                f"{tokens / taken:,.0f}",
                f"{1000 * taken * RANK_TOKENS / tokens:,.1f}",
                f"{share:.0%}",
                f"{results['kept_for_backward'][name] / 2**30:.2f}",
                "-" if peak is None else f"{peak / 2**30:.1f}",
            )
        )
    header = ("step", "tokens/s", f"ms per {RANK_TOKENS:,}", "of matrix rate", "GiB for backward", "peak GiB")
    parts = [(name, f"{1000 * taken:.1f}") for name, taken in results["phases"].items()]
    parts.append(("communication", "none: one process"))
    launch = results["host_launch_seconds"]
    parts.append(("host, until launched", "not measured on a CPU" if launch is None else f"{1000 * launch:.1f}"))
    backends = [
        (name, "unsupported" if taken is None else f"{1000 * taken:.1f}")
        for name, taken in results["attention"].items()
    ]
    kernels = [(row["name"][:70], row["calls"], f"{row['ms']:.1f}") for row in results["heaviest"]]
    return "\n\n".join(
        [
            table(header, rows),
            table(("where the time goes", "ms"), parts),
            table(("attention of one block, forward and backward", "ms"), backends),
            table(("heaviest", "calls", "ms"), kernels),
        ]
    )


def main() -> None:
    """Measure, print, save."""
    if device().type == "cuda":
        results = measure(GPTConfig(), num_sequences=48, seq_len=2048, repeats=10)
    else:
        results = measure(GPTConfig(num_layers=3), num_sequences=4, seq_len=512, repeats=5)
    tokens = results["num_sequences"] * results["seq_len"]
    print(
        f"{results['num_layers']} layers, {tokens:,} tokens per step, on {device_name()}; "
        f"matrix rate {results['matrix_rate'] / 1e12:.2f} TFLOP/s\n"
    )
    print(report(results))
    save("train_step", results)


if __name__ == "__main__":
    main()
