"""What the tests of the files that hold models share: small models, and ways to spoil a file."""

import hashlib
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from components.quantization import StoredTensor, quantize
from components.storage import Storage

SETTINGS = {"num_layers": 2, "rope_base": 10000.0, "tie_embeddings": True, "output_proj_init": "zero"}


def small_tensors(seed: int = 0) -> dict[str, StoredTensor]:
    """A tensor of every storage and of every odd shape, few values in all."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "five": quantize(weight(6, 40), Storage.INT5),
        "six": quantize(weight(5, 30), Storage.INT6),
        "eight": quantize(weight(4, 20) * 3, Storage.INT8),
        "empty codes": quantize(weight(3, 0).new_zeros(3, 2)[:0], Storage.INT8),
        "vector": quantize(weight(7), Storage.FLOAT16),
        "cube": quantize(weight(2, 3, 4), Storage.FLOAT16),
        "scalar": quantize(weight(), Storage.FLOAT16),
        "empty": quantize(weight(0, 5), Storage.FLOAT16),
    }


def assert_same(one: dict[str, StoredTensor], other: dict[str, StoredTensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.storage is other[name].storage
        for part, other_part in [(tensor.values, other[name].values), (tensor.scales, other[name].scales)]:
            if part is None:
                assert other_part is None
            else:
                assert part.dtype == other_part.dtype
                assert part.shape == other_part.shape
                assert part.numpy().tobytes() == other_part.numpy().tobytes(), name


def gaussian_state(num_layers: int, dim: int, vocab: int, buckets: int) -> dict[str, torch.Tensor]:
    """Weights of the recipe's network, Gaussian, each row of its own scale."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"tok_emb.weight": (vocab, dim), "bigram.embed.weight": (buckets, dim // 4)}
    for i in range(num_layers):
        shapes |= {f"blocks.{i}.attn.{name}.weight": (dim, dim) for name in ("c_q", "proj")}
        shapes |= {f"blocks.{i}.attn.{name}.weight": (dim // 2, dim) for name in ("c_k", "c_v")}
        shapes |= {f"blocks.{i}.mlp.fc.weight": (3 * dim, dim), f"blocks.{i}.mlp.proj.weight": (dim, 3 * dim)}
    return {
        name: torch.randn(shape, generator=generator)
        * 0.02
        * torch.randn(shape[0], 1, generator=generator).mul(0.5).exp()
        for name, shape in shapes.items()
    }


def sealed(header: bytes, model: bytes, values: bytes, version: int = 2) -> bytes:
    """A file of these parts whose lengths and checksum are right, whatever else is not."""
    preamble = struct.pack(
        "<8sIIIQ", b"\x89GOLF\r\n\x1a", version, len(header), len(model), 44 + len(header) + len(model) + len(values)
    )
    rest = header + model + values
    return preamble + hashlib.blake2b(preamble + rest, digest_size=16).digest() + rest


def parts_of(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The header and model frames and the coded values of a sound file."""
    _, _, header_bytes, model_bytes, _ = struct.unpack_from("<8sIIIQ", data)
    ends = [44 + header_bytes, 44 + header_bytes + model_bytes]
    return data[44 : ends[0]], data[ends[0] : ends[1]], data[ends[1] :]


@contextmanager
def at_most_a_gibibyte_more() -> Iterator[None]:
    """Let an allocation beyond the memory in use and one gibibyte raise MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut, repeat or swap some of the bytes, or write an extreme number over them."""
    mutated = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        start = int(generator.integers(0, len(mutated) + 1))
        # Half of all mutations strike the first bytes, where the lengths stand.
        start = min(start, int(generator.integers(0, 64))) if generator.integers(0, 2) else start
        stop = start + int(generator.integers(1, 16))
        kind = int(generator.integers(0, 6))
        if kind == 0 and start < len(mutated):
            mutated[start] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1:
            mutated[start:stop] = generator.bytes(stop - start)
        elif kind == 2:
            del mutated[start : stop if generator.integers(0, 2) else None]
        elif kind == 3:
            mutated[start:start] = mutated[start:stop]
        elif kind == 4:
            mutated[start : start + 4] = [b"\xff" * 4, bytes(4), b"\x00\x00\x00\x80"][int(generator.integers(0, 3))]
        else:
            mutated += bytes(int(generator.integers(1, 100)))
    return bytes(mutated)
