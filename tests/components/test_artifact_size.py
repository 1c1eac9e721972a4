"""How near to its entropy the 1.0810 record's network is stored, at full size."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from components.artifact import read_artifact, write_artifact
from components.gptq import sigma_scales
from components.quantization import StoredTensor
from components.storage import Storage

SIGMAS = {Storage.INT6: (12.85, 31), Storage.INT8: (20.0, 127)}


def gaussian_rows(generator: torch.Generator, rows: int, cols: int, storage: Storage) -> StoredTensor:
    """Rows of different sizes, rounded to nearest at the record's scales."""
    weight = torch.randn(rows, cols, generator=generator)
    weight *= 0.02 * torch.randn(rows, 1, generator=generator).mul(0.5).exp()
    sigmas, largest = SIGMAS[storage]
    scales = sigma_scales(weight, storage, sigmas)
    codes = (weight / scales[:, None]).round().clamp(-largest, largest)
    return StoredTensor(storage, codes.to(torch.int8), scales.half())


def record_tensors(num_layers: int, vocab_size: int) -> dict[str, StoredTensor]:
    """The record's tensors of more than one dimension or of a row for each layer, by their public names."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"tok_emb.weight": gaussian_rows(generator, vocab_size, 512, Storage.INT8)}
    shapes = {"attn.c_q": (512, 512), "attn.c_k": (256, 512), "attn.c_v": (256, 512), "attn.proj": (512, 512)}
    shapes |= {"mlp.fc": (2048, 512), "mlp.proj": (512, 2048)}
    for i in range(num_layers):
        for name, (rows, cols) in shapes.items():
            tensors[f"blocks.{i}.{name}.weight"] = gaussian_rows(generator, rows, cols, Storage.INT6)
        controls = {"attn.q_gain": (8,), "attn_scale": (512,), "mlp_scale": (512,), "resid_mix": (2, 512)}
        for name, shape in controls.items():
            values = torch.randn(shape, generator=generator).half()
            tensors[f"blocks.{i}.{name}"] = StoredTensor(Storage.FLOAT16, values)
    for name in ("skip_weights", "skip_gates"):
        tensors[name] = StoredTensor(Storage.FLOAT16, torch.randn(8, 512, generator=generator).half())
    return tensors


def entropy_and_rest(tensors: dict[str, StoredTensor]) -> tuple[float, int]:
    """Bytes of the zeroth-order entropy of each tensor's codes, and of all else as it is."""
    entropy, rest = 0.0, 0
    for tensor in tensors.values():
        if tensor.scales is None:
            rest += tensor.values.nbytes
            continue
        counts = np.bincount(tensor.values.numpy().view(np.uint8).ravel()).astype(float)
        counts = counts[counts > 0]
        entropy += (counts * np.log2(counts.sum() / counts)).sum() / 8
        rest += tensor.scales.nbytes
    return entropy, rest


def test_the_full_size_network_takes_a_hundredth_more_than_its_codes_entropy_and_the_rest(tmp_path: Path) -> None:
    tensors = record_tensors(num_layers=11, vocab_size=8192)
    assert sum(tensor.values.numel() for tensor in tensors.values()) == 35_944_536  # as the record's log counts them
    entropy, rest = entropy_and_rest(tensors)
    size = write_artifact(tmp_path / "full.golf", {}, tensors)
    assert size <= 1.01 * entropy + rest
    found = read_artifact(tmp_path / "full.golf").tensors
    assert all(torch.equal(found[name].values, tensor.values) for name, tensor in tensors.items())


@pytest.mark.slow
def test_it_is_smaller_than_shuffled_bytes_under_brotli(tmp_path: Path) -> None:
    brotli = pytest.importorskip("brotli", reason="the package brotli is not installed; `make setup` installs it")
    tensors = record_tensors(num_layers=1, vocab_size=1024)
    buffer = io.BytesIO()
    parts = {
        f"{name}.{part}": getattr(tensor, part) for name, tensor in tensors.items() for part in ("values", "scales")
    }
    torch.save({name: part for name, part in parts.items() if part is not None}, buffer)
    data = np.frombuffer(buffer.getvalue(), np.uint8)
    shuffled = np.concatenate([data[::2], data[1::2]]).tobytes()
    size = write_artifact(tmp_path / "small.golf", {}, tensors)
    assert size < len(brotli.compress(shuffled, quality=11))
