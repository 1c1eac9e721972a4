"""The golden numbers on this device: logits, a training trajectory, scores; in float32 and in a run's bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.common import device
from benchmarks.gpu_check.findings import Finding, Skipped
from benchmarks.gpu_check.setting import Setting
from benchmarks.qat_switch import RULES
from components.byte_counts import token_byte_table
from components.gpt import GPT, GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer
from components.public_artifact import read_public_artifact
from components.quantization import Nearest, load_state
from components.scorer import SlidingWindows
from components.scoring import WindowLoader
from components.tokenizer import load_tokenizer
from datamodules.shards import find_shards, open_shard
from datamodules.stream import SpanLoader, TokenStream


@dataclass(frozen=True)
class Limits:
    """How far results may be from the golden numbers.

    Args:
        logit: Any logit.
        loss: A mean loss, in nats.
        bits_per_byte: A score.
        trained_loss: A loss along the trajectory, in nats; Newton-Schulz rounds to bfloat16 in any precision.
        gradient_norm: A gradient's norm along the trajectory, relative.
        squares: A parameter's sum of squares after the trajectory, relative.
    """

    logit: float
    loss: float
    bits_per_byte: float
    trained_loss: float
    gradient_norm: float
    squares: float


LIMITS = {
    "float32": Limits(1e-3, 1e-4, 1e-4, 5e-3, 0.01, 0.02),
    # To be confirmed by the first run on a GPU: three times what autocast on a CPU was off by.
    "bfloat16": Limits(0.4, 5e-3, 0.01, 0.03, 0.03, 0.03),
}


def precision(name: str) -> AbstractContextManager[Any]:
    """A context that computes in a run's mixed precision, or not."""
    return torch.autocast(device().type, torch.bfloat16, enabled=name == "bfloat16")


def logits(setting: Setting) -> Iterator[Finding]:
    """Logits and mean loss of the public script's exported file."""
    golden = folder(setting)
    expected = np.load(golden / "forward.npz")
    input_ids, target_ids = (
        torch.from_numpy(expected[name]).long().to(device()) for name in ("input_ids", "target_ids")
    )
    network = exported_network(golden)
    for name, limits in LIMITS.items():
        with torch.no_grad(), precision(name):
            found = network.logits(input_ids, input_ids.size(1)).cpu().numpy()
            loss = network(input_ids, target_ids).mean().item()
        first, last = expected["logits_first32"], expected["logits_last8"]
        off = max(np.abs(found[:, :32] - first).max(), np.abs(found[:, -8:] - last).max())
        yield Finding(f"logits, {name}: off by", float(off), limit=limits.logit)
        yield Finding(f"loss, {name}: off by", abs(loss - float(expected["mean_loss"])), "nats", limit=limits.loss)


def trajectory(setting: Setting) -> Iterator[Finding]:
    """Eight optimizer steps, late QAT among them."""
    golden, data = folder(setting), data_of(setting)
    expected = json.loads((golden / "trajectory.json").read_text())
    for name, limits in LIMITS.items():
        network = network_with(golden, load_file(golden / "init.safetensors"))
        losses, norms = train(network, expected, data, name)
        rows = [dict(zip(expected["columns"], row, strict=True)) for row in expected["rows"]]
        off = max(abs(loss - row["loss"]) for loss, row in zip(losses, rows, strict=True))
        yield Finding(f"losses, {name}: off by", off, "nats", limit=limits.trained_loss)
        off = max(abs(norm / row["grad_norm_before_clip"] - 1) for norm, row in zip(norms, rows, strict=True))
        yield Finding(f"gradient norms, {name}: off by", off, "relative", limit=limits.gradient_norm)
        sums = {key: squares for key, (_, squares) in expected["param_sums"].items()}
        off = max(
            abs(p.detach().double().square().sum().item() / sums[key] - 1) for key, p in network.named_parameters()
        )
        yield Finding(f"weights' squares, {name}: off by", off, "relative", limit=limits.squares)


def train(network: GPT, expected: Mapping[str, Any], data: Path, name: str) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the golden trajectory's steps."""
    optimizer = build_optimizer(network, OptimizerConfig())
    stream = TokenStream(find_shards(data, "train"), network.config.vocab_size)
    num_tokens = expected["batch_sequences"] * expected["seq_len"]
    batches = iter(SpanLoader(stream, 0, num_tokens, micro_batches=1, seq_len=expected["seq_len"]))
    losses, norms = [], []
    for row in expected["rows"]:
        values = dict(zip(expected["columns"], row, strict=True))
        if values["qat"]:
            network.enable_fake_quantization(RULES, Nearest())
        optimizer.param_groups[0]["momentum"] = values["muon_momentum"]
        input_ids, target_ids = (ids.to(device()) for ids in next(batches))
        with precision(name):
            loss = network(input_ids, target_ids).mean()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), 0.3).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def scores(setting: Setting) -> Iterator[Finding]:
    """Sliding-window scores of the public script's exported file."""
    golden, data = folder(setting), data_of(setting)
    if setting.tokenizer is None:
        raise Skipped("give the tokenizer of these shards with --tokenizer")
    byte_table = token_byte_table(load_tokenizer(setting.tokenizer))
    network = exported_network(golden)
    [shard] = find_shards(data, "val")
    for case in json.loads((golden / "eval.json").read_text())["roundtrip"]:
        loader = WindowLoader(
            torch.from_numpy(open_shard(shard)[: case["tokens"]].astype(np.int64)),
            byte_table,
            seq_len=case["seq_len"],
            stride=case["stride"],
            windows_per_batch=16,
            device=device(),
        )
        for name, limits in LIMITS.items():
            with precision(name):
                off = abs(SlidingWindows().score(network, loader).bits_per_byte - case["val_bpb"])
            windows = f"{case['tokens']:,} ids in windows of {case['seq_len']}"
            yield Finding(f"{windows}, {name}: off by", off, "bpb", limit=limits.bits_per_byte)


def folder(setting: Setting) -> Path:
    """The folder of golden numbers, if there is one."""
    if setting.golden is None:
        raise Skipped("give a folder of golden numbers with --golden")
    return setting.golden


def data_of(setting: Setting) -> Path:
    """The shards that the golden numbers were computed on, if there are any."""
    if setting.data is None:
        raise Skipped("give the shards of the golden numbers with --data")
    return setting.data


def exported_network(golden: Path) -> GPT:
    """The network of the public script's exported file, on the device."""
    return network_with(golden, load_state(read_public_artifact(golden / "artifact.int5int6.ptz")))


def network_with(golden: Path, weights: Mapping[str, Tensor]) -> GPT:
    """The golden network with these weights, on the device."""
    settings = json.loads((golden / "config.json").read_text())
    names = {field.name for field in fields(GPTConfig)}
    network = GPT(GPTConfig(**{name: value for name, value in settings.items() if name in names}))
    network.load_state_dict(weights)
    return network.to(device())
