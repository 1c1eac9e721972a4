"""Shared by the benchmarks: the machine's name, interleaved timing, a text table, and a result file."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from components.files import write_whole
from components.gpt import GPT, GPTConfig
from components.layers import Linear

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "lightning", "numpy", "sentencepiece", "zstandard")


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The chip's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each task; they take turns, so that the machine's ups and downs affect all of them alike."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: median(values) for name, values in times.items()}


def matrix_rate() -> float:
    """Floating-point operations per second of a large matrix product, in the dtype of training's products."""
    size, dtype = (8192, torch.bfloat16) if device().type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device(), dtype=dtype) for _ in range(2))
    return 2 * size**3 / in_turn({"product": lambda: torch.mm(a, b)}, repeats=10)["product"]


def in_linears(module: nn.Module) -> int:
    """Weights of the linear layers in a module."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, Linear))


def products_per_token(config: GPTConfig, seq_len: int) -> float:
    """Floating-point operations per token of a forward pass, in matrix products and causal attention.

    A looped layer counts as often as the looped order runs it.
    """
    with torch.device("meta"):
        network = GPT(config)
    encoder, decoder = config.layer_order(looping=True)
    order = encoder + decoder
    in_linear = sum(in_linears(network.blocks[layer]) for layer in order)
    in_linear += in_linears(network) - in_linears(network.blocks)
    if config.tie_embeddings:
        in_linear += network.tok_emb.weight.numel()  # the head; the tables are only looked up
    attention = 2 * len(order) * seq_len * config.model_dim  # queries with keys, then values; half of the square
    return 2 * in_linear + attention


def random_network(config: GPTConfig) -> GPT:
    """A network on the device, without projections that are all zero: zeros may multiply faster."""
    torch.manual_seed(0)
    return GPT(dataclasses.replace(config, output_proj_init="scaled")).to(device())


class TrainingStep:
    """One optimizer step on one micro-batch of random ids, as one of eight ranks takes it in the record run.

    It is autocast to bfloat16 on a GPU, and all float32 on a CPU.

    Args:
        network: The network to train, compiled or not.
        optimizer: Its optimizer.
        num_sequences: Sequences in the micro-batch.
        seq_len: Tokens in a sequence.
    """

    def __init__(self, network: GPT, optimizer: torch.optim.Optimizer, num_sequences: int, seq_len: int) -> None:
        self.network, self.optimizer = network, optimizer
        self.span = torch.randint(network.config.vocab_size, (num_sequences * seq_len + 1,))
        self.seq_len = seq_len
        self.load(self.span)

    @property
    def num_tokens(self) -> int:
        """Targets of the step."""
        return self.target_ids.numel()

    def load(self, span: Tensor) -> None:
        """Copy a span of ids [tokens + 1] to the device."""
        # Apart, as a run moves them: targets that are a view of the span's second id on are aligned worse.
        self.input_ids, self.target_ids = (
            ids.view(-1, self.seq_len).to(device(), non_blocking=True) for ids in (span[:-1], span[1:])
        )

    def forward(self) -> None:
        """Compute the mean loss."""
        with torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda"):
            self.loss = self.network(self.input_ids, self.target_ids).mean()

    def backward(self) -> None:
        """Compute its gradients."""
        self.loss.backward()

    def update(self) -> None:
        """Clip the gradients and update the weights."""
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.3)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        """Take the whole step."""
        self.forward()
        self.backward()
        self.update()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, the first left-aligned and the others right-aligned."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )


def result_path(name: str) -> Path:
    """Where a benchmark's results on this device belong."""
    return RESULTS / f"{name}-{re.sub(r'[^A-Za-z0-9]+', '-', device_name()).strip('-')}.json"


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON with the device, versions and date."""
    surroundings = {
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
    }
    write_whole(path, (json.dumps({**surroundings, **results}, indent=2) + "\n").encode())


def save(name: str, results: Mapping[str, Any]) -> Path:
    """Write results/<name>-<device>.json with the device, versions and date."""
    RESULTS.mkdir(exist_ok=True)
    path = result_path(name)
    write_results(path, results)
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
