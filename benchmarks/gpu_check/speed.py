"""Scoring, Muon, attention and Lightning's overhead, each as its own benchmark measures it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import torch

from benchmarks import muon as muon_benchmark
from benchmarks.common import device, in_turn, random_network, seconds
from benchmarks.gpu_check.findings import Finding, Skipped
from benchmarks.gpu_check.setting import FULL, LOADER_SIZE, Setting
from benchmarks.gpu_check.training import waits
from benchmarks.overhead import PROFILED, compare
from benchmarks.scoring import STRIDE, ours, plain, random_batches, total
from benchmarks.train_step import attention_backends
from components.block import Block
from components.fused_mlp import has_triton
from datamodules.corpus import build_corpus

SAME_NATS = {"cuda": 3e-3, "cpu": 1e-5}
"""Nats per token by which two ways to score may differ in a run's precision; that of a GPU is to be confirmed there."""

SAME_MLP = 1e-2
"""Part of its norm by which a gradient through the fused MLP may differ, in bfloat16; to be confirmed on a GPU."""

REPEATS = 3


def scoring(setting: Setting) -> Iterator[Finding]:
    """Windows a second at the record's stride, and that scored positions alone give the score of all positions."""
    torch._dynamo.reset()
    size = setting.size
    network = random_network(size.config).eval()
    network.reserve_positions(size.seq_len)
    compiled = copy.deepcopy(network)
    compiled.compile(dynamic=False, fullgraph=True)
    batches = random_batches(size.config.vocab_size, size.seq_len, size.windows_per_batch, size.batches)
    yield Finding("first pass, with compilation", seconds(lambda: total(ours, compiled, batches[:1])), "s")
    num_windows = size.windows_per_batch * len(batches)
    time = in_turn({"ours": lambda: total(ours, compiled, batches)}, REPEATS)["ours"]
    yield Finding("rate", num_windows / time, "windows/s", setting.predicted("predicted_windows_per_second", "score"))
    off = abs(total(ours, compiled, batches[:1]) - total(plain, network, batches[:1]))
    per_token = off / (STRIDE * size.windows_per_batch)
    yield Finding("nats per token, off by", per_token, limit=SAME_NATS[device().type])


def muon(setting: Setting) -> Iterator[Finding]:
    """One step of our Muon and of torch's."""
    narrow = dataclasses.replace(setting.size.config, model_dim=32, num_heads=2, num_kv_heads=1)
    matrices = muon_benchmark.random_matrices(setting.size.config if setting.size is FULL else narrow)
    optimizers = muon_benchmark.optimizers(matrices)
    times = in_turn({name: optimizer.step for name, optimizer in optimizers.items()}, REPEATS)
    for name, optimizer in optimizers.items():
        yield Finding(f"step, {name}", 1e3 * times[name], "ms")
        yield Finding(f"operator calls, {name}", muon_benchmark.operator_calls(optimizer))


def attention(setting: Setting) -> Iterator[Finding]:
    """Each backend's time for one block, and those that torch chooses for a run's shapes."""
    size = setting.size
    layers = size.config.num_layers
    predicted = setting.predicted("predicted_ms", "train", "attention")
    assumed = setting.prediction["attention"] if setting.prediction else None
    for name, taken in attention_backends(size.config, size.num_sequences, size.seq_len).items():
        per_block = predicted / layers if predicted is not None and name == assumed else None
        yield Finding(f"{name}, forward and backward", "unsupported" if taken is None else 1e3 * taken, "ms", per_block)
    block = random_network(dataclasses.replace(size.config, num_layers=1)).blocks[0]
    assert isinstance(block, Block)
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    yield Finding("chosen in training", block.attn.backend(size.seq_len, size.seq_len, dtype) or "none")
    with torch.no_grad():
        yield Finding("chosen in the last block's scoring", block.attn.backend(size.seq_len, STRIDE, dtype) or "none")


def fused_mlp(setting: Setting) -> Iterator[Finding]:
    """One MLP, forward and backward, as shipped and with model.fused_mlp, and how far apart their gradients are."""
    if device().type != "cuda" or not has_triton():
        raise Skipped("model.fused_mlp needs a CUDA GPU and a build of torch with Triton")
    torch._dynamo.reset()
    size = setting.size
    networks = {name: random_network(dataclasses.replace(size.config, num_layers=1)) for name in ("shipped", "fused")}
    networks["fused"].fuse_mlps()
    shape = (size.num_sequences, size.seq_len, size.config.model_dim)
    x, upstream = (torch.randn(shape, device=device(), dtype=torch.bfloat16) for _ in range(2))
    x.requires_grad_()
    mlps = {name: network.get_submodule("blocks.0.mlp") for name, network in networks.items()}
    for mlp in mlps.values():
        mlp.compile(dynamic=False, fullgraph=True)

    def gradients(name: str) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(mlps[name](x), [x, *mlps[name].parameters()], upstream)

    for what, expected, found in zip(("x", "fc", "proj"), gradients("shipped"), gradients("fused"), strict=True):
        off = (found - expected).float().norm() / expected.float().norm()
        yield Finding(f"gradient of {what}, off by", off.item(), limit=SAME_MLP)
    for name, taken in in_turn({name: lambda name=name: gradients(name) for name in mlps}, REPEATS).items():  # type: ignore[misc]
        yield Finding(f"{name}, forward and backward", 1e3 * taken, "ms")


def overhead(setting: Setting) -> Iterator[Finding]:
    """A fit with every callback on, beside a bare loop; its steady steps must not wait for the device either."""
    torch._dynamo.reset()
    size = setting.size
    if size is FULL:
        config, num_sequences = size.config, size.num_sequences
    else:
        config, num_sequences = LOADER_SIZE, 1
    build_corpus(setting.corpus)
    compared = compare(config, num_sequences, size.seq_len, setting.corpus, size.overhead_blocks)
    bare, fitted = (1e3 * loop.seconds_per_step for loop in (compared.bare[1], compared.fit))
    yield Finding("bare loop", bare, "ms")
    yield Finding("fit", fitted, "ms")
    yield Finding("fit adds", 1e3 * compared.added_seconds, "ms")
    if device().type == "cuda":
        yield from waits(f"in {PROFILED} steady steps of a fit", compared.fit.synchronizations)
