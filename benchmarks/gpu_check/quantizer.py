"""Rounding on this device bit for bit as on a CPU, and an exported file that any device reads alike."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import device
from benchmarks.gpu_check.findings import Finding
from benchmarks.gpu_check.golden import precision
from benchmarks.gpu_check.setting import Setting
from benchmarks.qat_switch import RULES
from components.artifact import read_artifact, write_artifact
from components.byte_counts import ByteTable
from components.gpt import GPT, GPTConfig, shapes_of
from components.layers import Fakeable, seen_weight
from components.quantization import Nearest, fake_quantize, load_state, quantize, store
from components.scorer import SlidingWindows
from components.scoring import Score, WindowLoader
from components.storage import Storage, assign

QUANTIZED = tuple(storage for storage in Storage if storage is not Storage.FLOAT16)
SAME_SCORE = 1e-5
"""Share by which a float32 score may differ between devices; to be confirmed by the first run on a GPU."""

FakeQuantizer = Callable[[Tensor, Storage], Tensor]


def awkward_matrix(shape: Sequence[int]) -> Tensor:
    """A matrix with rows of many magnitudes, ties, zeros and values beyond its scale's smallest, float32 on the CPU."""
    rows, cols = shape
    matrix = torch.randn(rows, cols) * torch.logspace(-6, 1, rows)[:, None]
    matrix[0] = 0
    matrix[1] = (torch.arange(cols).remainder(62) - 30.5) / 2  # ties at int6's scale of 0.5
    matrix[1, 0] = 31 / 2
    matrix[2] = torch.finfo(torch.float32).smallest_normal
    matrix[3, :2] = torch.tensor([60_000.0, -60_000.0])
    return matrix


def num_differing(a: Tensor, b: Tensor) -> int:
    """Elements of float32 tensors whose bits differ."""
    return int((a.cpu().view(torch.int32) != b.cpu().view(torch.int32)).sum())


def rounding(setting: Setting, fake: FakeQuantizer = fake_quantize) -> Iterator[Finding]:
    """Codes, scales and fake-quantized weights of the network's matrices, against those of the CPU."""
    torch.manual_seed(0)
    shapes = shapes_of(setting.size.config)
    quantized = [shapes[name] for name, rule in assign(shapes, RULES).items() if rule.kind is not Storage.FLOAT16]
    matrices = [awkward_matrix(shape) for shape in sorted(set(quantized))]
    expected = [quantize(matrix, storage) for matrix in matrices for storage in QUANTIZED]

    def fake_all(weights: Sequence[Tensor]) -> list[Tensor]:
        return [fake(weight, storage) for weight in weights for storage in QUANTIZED]

    on_device = [matrix.to(device()) for matrix in matrices]
    stored = [quantize(weight, storage) for weight in on_device for storage in QUANTIZED]
    codes = sum(int((a.values.cpu() != b.values).sum()) for a, b in zip(stored, expected, strict=True))
    scales = sum(
        int((a.scales.cpu() != b.scales).sum())
        for a, b in zip(stored, expected, strict=True)
        if a.scales is not None and b.scales is not None
    )
    yield Finding("matrices", len(expected))
    yield Finding("codes that differ", codes, limit=0)
    yield Finding("scales that differ", scales, limit=0)
    for name, fake_quantizer in (("eager", fake_all), ("compiled", torch.compile(fake_all, dynamic=False))):
        seen = fake_quantizer(on_device)
        differing = sum(num_differing(a, b.dequantize()) for a, b in zip(seen, expected, strict=True))
        yield Finding(f"weights that late QAT sees otherwise, {name}", differing, limit=0)


def exported_file(setting: Setting) -> Iterator[Finding]:
    """The trained network's file: what the device's late QAT saw, and one score on the device and on the CPU."""
    network = setting.step.network
    config = network.config
    with torch.no_grad():
        seen = {name: weight.cpu() for name, weight in seen_weights(network).items()}
        storages = {name: rule.kind for name, rule in assign(network.shapes(), RULES).items()}
        stored = store(dict(network.named_parameters()), storages, Nearest())
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.golf"
        num_bytes = write_artifact(file, dataclasses.asdict(config), stored, RULES)
        weights = load_state(read_artifact(file).tensors)
    yield Finding("file", num_bytes / 1e6, "MB")
    differing = sum(num_differing(seen[name], weights[name]) for name in seen)
    yield Finding("weights of the file that late QAT saw otherwise", differing, limit=0)
    on_cpu = score(config, weights, torch.device("cpu"), setting)
    on_device = score(config, weights, device(), setting)
    off = abs(on_device.nats / on_cpu.nats - 1)
    yield Finding("score on the CPU", on_cpu.loss, "nats/token")
    yield Finding("score on the device, float32: off by", off, "relative", limit=SAME_SCORE)
    with precision("bfloat16"):
        rounded = score(config, weights, device(), setting)
    yield Finding("score on the device, bfloat16: off by", abs(rounded.nats / on_cpu.nats - 1), "relative")


def seen_weights(network: GPT) -> dict[str, Tensor]:
    """The weights that late QAT fakes, as it sees them on their device."""
    network.enable_fake_quantization(RULES, Nearest())
    try:
        return {
            f"{name}.weight": seen_weight(module)
            for name, module in network.named_modules()
            if isinstance(module, Fakeable) and module.fake is not None
        }
    finally:
        network.disable_fake_quantization()


def score(config: GPTConfig, weights: Mapping[str, Tensor], where: torch.device, setting: Setting) -> Score:
    """Score made-up text on a device; each id stands for one byte."""
    network = GPT(config)
    network.load_state_dict(dict(weights))
    network.to(where).reserve_positions(setting.size.seq_len)
    ids = torch.randint(config.vocab_size, (setting.size.seq_len + 200,), generator=torch.Generator().manual_seed(0))
    ones, zeros = (torch.full((config.vocab_size,), value) for value in (1, 0))
    loader = WindowLoader(
        ids,
        ByteTable(ones, zeros, zeros),
        seq_len=setting.size.seq_len,
        stride=64,
        windows_per_batch=2,
        device=where,
    )
    return SlidingWindows().score(network, loader)
