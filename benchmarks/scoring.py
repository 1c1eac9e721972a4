"""Sliding-window scoring compared with the plain way: ``python -m benchmarks.scoring``.

Plain: every window computes all of its positions and the loss of each. Ours: only scored positions are computed after
the last block's keys and values. Both run eagerly and compiled, and give the same score up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.common import device, device_name, in_turn, random_network, save, table
from components.byte_counts import ByteTable
from components.gpt import GPTConfig
from components.scoring import WindowBatch, WindowLoader

STRIDE = 64


Way = Callable[[nn.Module, WindowBatch], Tensor]
"""From a batch to the nats of its scored targets, [B, S]."""


def ours(model: nn.Module, batch: WindowBatch) -> Tensor:
    """Compute the scored positions."""
    return model(batch.input_ids, batch.target_ids)


def plain(model: nn.Module, batch: WindowBatch) -> Tensor:
    """Compute every position."""
    targets = torch.cat((batch.input_ids[:, 1 : 1 - STRIDE], batch.target_ids), dim=1)
    return model(batch.input_ids, targets)[:, -STRIDE:]


def random_batches(vocab_size: int, seq_len: int, windows_per_batch: int, num_batches: int) -> list[WindowBatch]:
    """Batches of windows of random ids, without the first window, which scores all of its positions either way."""
    loader = WindowLoader(
        torch.randint(vocab_size, (seq_len + STRIDE * windows_per_batch * num_batches + 1,)),
        ByteTable(*torch.ones(3, vocab_size, dtype=torch.int64)),
        seq_len=seq_len,
        stride=STRIDE,
        windows_per_batch=windows_per_batch,
        device=device(),
    )
    return list(loader)[1:]


def total(way: Way, model: nn.Module, batches: Sequence[WindowBatch]) -> float:
    """Nats of all scored targets, in the precision of a run on this device."""
    with torch.no_grad(), torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
        return float(sum(way(model, batch).double().sum() for batch in batches))


def main() -> None:
    """Compare windows per second, and the resulting nats."""
    cuda = device().type == "cuda"
    seq_len, windows_per_batch, num_batches = (2048, 64, 8) if cuda else (1024, 2, 2)
    network = random_network(GPTConfig()).eval()
    compiled = copy.deepcopy(network)
    compiled.compile(dynamic=False, fullgraph=True)
    batches = random_batches(network.config.vocab_size, seq_len, windows_per_batch, num_batches)
    ways = {
        "plain, eager": lambda: total(plain, network, batches),
        "scored positions, eager": lambda: total(ours, network, batches),
        "plain, compiled": lambda: total(plain, compiled, batches),
        "scored positions, compiled": lambda: total(ours, compiled, batches),
    }
    nats = {name: way() / (STRIDE * windows_per_batch * num_batches) for name, way in ways.items()}
    times = in_turn(ways, repeats=5 if cuda else 3)
    rates = {name: windows_per_batch * num_batches / time for name, time in times.items()}
    print(f"full-size network, windows of {seq_len}, stride {STRIDE}, on {device_name()}")
    print(
        table(
            ("way", "windows per second", "times plain", "nats per token"),
            [(n, f"{rates[n]:.2f}", f"{rates[n] / rates['plain, eager']:.2f}", f"{nats[n]:.7f}") for n in ways],
        )
    )
    save("scoring", {"seq_len": seq_len, "stride": STRIDE, "windows_per_second": rates, "nats_per_token": nats})


if __name__ == "__main__":
    main()
