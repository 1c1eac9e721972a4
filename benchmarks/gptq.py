"""GPTQ and the artifact of the 1.0810 record's network at full size: ``python -m benchmarks.gptq``."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import brotli
import numpy as np
import torch

from benchmarks.common import device, device_name, random_network, save, seconds, table
from components.artifact import read_artifact, write_artifact
from components.gpt import GPTConfig
from components.gptq import GPTQ
from components.quantization import StoredTensor, load_state, store
from components.storage import LARGEST_FLOAT16_TENSOR, StorageRule, assign

RECORD = GPTConfig(
    vocab_size=8192,
    num_layers=11,
    mlp_mult=4.0,
    bigram_vocab_size=0,
    smear="none",
    skip_gates=True,
    loop_start=3,
    loop_end=5,
    num_loops=2,
)
RULES = (
    StorageRule("*", "float16", at_most=LARGEST_FLOAT16_TENSOR),
    StorageRule("tok_emb.weight", "int8"),
    StorageRule("blocks.*", "int6"),
)


def main() -> None:
    """Time rounding with given Hessians, writing and reading; count the bytes beside entropy and brotli."""
    network = random_network(RECORD)
    weights = {name: p.detach() for name, p in network.named_parameters()}
    with torch.no_grad():  # rows of different sizes, as training leaves them
        for weight in weights.values():
            if weight.ndim == 2:
                weight.copy_(0.02 * torch.randn_like(weight) * torch.exp(0.3 * torch.randn_like(weight[:, :1])))
    storages = {name: rule.kind for name, rule in assign(network.shapes(), RULES).items()}
    quantizer = GPTQ()
    quantizer.hessians = {name: random_hessian(weight.size(1)) for name, weight in weights.items() if weight.ndim == 2}
    stored: dict[str, StoredTensor] = {}
    times, num_bytes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.golf"
        times["quantize, Hessians given"] = seconds(lambda: stored.update(store(weights, storages, quantizer)))
        times["write"] = seconds(lambda: write_artifact(path, dataclasses.asdict(RECORD), stored, RULES))
        times["read"] = seconds(lambda: load_state(read_artifact(path).tensors))
        num_bytes["the artifact"] = path.stat().st_size
    num_bytes["entropy of the codes, the rest as it is"] = round(order_zero_bytes(stored))
    times["shuffle and brotli 11"] = seconds(lambda: num_bytes.update({"shuffle and brotli 11": brotli_bytes(stored)}))
    print(f"{sum(weight.numel() for weight in weights.values()):,} parameters on {device_name()}")
    print(table(("step", "seconds"), [(name, f"{time:.2f}") for name, time in times.items()]))
    print(table(("file", "bytes"), [(name, f"{size:,}") for name, size in num_bytes.items()]))
    save("gptq", {"seconds": times, "bytes": num_bytes})


def random_hessian(num_inputs: int) -> torch.Tensor:
    """That of inputs of different sizes, as many and a few more."""
    inputs = torch.randn(num_inputs + 256, num_inputs, device=device())
    inputs *= torch.exp(torch.randn(num_inputs, device=device()))
    return inputs.T @ inputs


def order_zero_bytes(tensors: Mapping[str, StoredTensor]) -> float:
    """Zeroth-order entropy of each tensor's codes, scales and float16 tensors at two bytes a value."""
    total = 0.0
    for tensor in tensors.values():
        if tensor.scales is None:
            total += tensor.values.nbytes
            continue
        counts = np.bincount(tensor.values.numpy().view(np.uint8).ravel()).astype(float)
        counts = counts[counts > 0]
        total += float((counts * np.log2(counts.sum() / counts)).sum()) / 8 + tensor.scales.nbytes
    return total


def brotli_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    """Length of the record's own format: a ``torch.save``, its even bytes before its odd ones, under brotli 11."""
    parts = {f"{name}.q": tensor.values for name, tensor in tensors.items()}
    parts |= {f"{name}.scale": tensor.scales for name, tensor in tensors.items() if tensor.scales is not None}
    buffer = io.BytesIO()
    torch.save(parts, buffer)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    return len(brotli.compress(np.concatenate([data[::2], data[1::2]]).tobytes(), quality=11))


if __name__ == "__main__":
    main()
