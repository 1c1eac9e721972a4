"""What an artifact holds, tensor by tensor: kind, bytes in the file, error, and how often each code occurs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from components.model_files import read_any_artifact
from components.quantization import StoredTensor
from components.storage import Storage
from components.weight_coding import coded_sizes
from components.weights_file import read_weights

KINDS = {
    "tok_emb": "token table",
    "lm_head": "output head",
    "bigram": "bigram table",
    "attn": "attention",
    "mlp": "MLP",
}
"""What is large in a network, by the module's name; all else is small."""
SMALL = "small tensors"

FLOAT_BINS = 60


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of an artifact.

    Attributes:
        name: its name in the network.
        kind: the part of the network that it belongs to.
        layer: its block; None outside the blocks.
        storage: how its values are written.
        shape: its shape.
        num_bytes: its share of the file.
        error: norm of its difference from the float weights, over their norm; None if those are not at hand.
        edges: the borders of the histogram's bars, one more than there are bars.
        counts: the number of values in each bar.
    """

    name: str
    kind: str
    layer: int | None
    storage: str
    shape: tuple[int, ...]
    num_bytes: float
    error: float | None
    edges: list[float]
    counts: list[int]

    @property
    def num_values(self) -> int:
        """Its number of values."""
        return sum(self.counts)


def read_model_facts(artifact: Path, weights: Path | None) -> list[TensorFacts]:
    """The tensors of an artifact, in the order of the file.

    Args:
        artifact: The file, of either format; a public file's bytes are counted before compression.
        weights: The float weights that it was made from, if they are at hand.

    Raises:
        UserError: A file cannot be read.
    """
    read = read_any_artifact(artifact)
    stored = list(read.tensors.values())
    sizes = coded_sizes(stored) if read.settings is not None else [float(tensor.num_bytes) for tensor in stored]
    floats: Mapping[str, Tensor] = {} if weights is None else read_weights(weights).weights
    return [
        _facts(name, tensor, size, floats.get(name))
        for (name, tensor), size in zip(read.tensors.items(), sizes, strict=True)
    ]


def bytes_by_kind(tensors: Sequence[TensorFacts]) -> dict[str, float]:
    """Bytes of each kind of tensor, the largest first."""
    totals: dict[str, float] = {}
    for tensor in tensors:
        totals[tensor.kind] = totals.get(tensor.kind, 0.0) + tensor.num_bytes
    return dict(sorted(totals.items(), key=lambda item: (item[0] == SMALL, -item[1])))


def _facts(name: str, tensor: StoredTensor, num_bytes: float, weight: Tensor | None) -> TensorFacts:
    parts = name.split(".")
    in_block = re.match(r"blocks\.(\d+)\.", name)
    module = parts[2] if in_block and len(parts) > 2 else parts[0]
    kind = KINDS.get(module, SMALL) if tensor.values.ndim == 2 else SMALL
    edges, counts = _histogram(tensor)
    error = None if weight is None else tensor.relative_error(weight)
    layer = int(in_block[1]) if in_block else None
    shape = tuple(tensor.values.shape)
    return TensorFacts(name, kind, layer, str(tensor.storage), shape, num_bytes, error, edges, counts)


def _histogram(tensor: StoredTensor) -> tuple[list[float], list[int]]:
    """Codes, one bar each; or float16 values, in bars of the same width."""
    values = tensor.values.flatten().numpy()
    if tensor.storage is not Storage.FLOAT16:
        smallest, largest = (int(values.min()), int(values.max())) if values.size else (0, 0)
        counts = np.bincount(values.astype(np.int64) - smallest, minlength=largest - smallest + 1)
        return [code - 0.5 for code in range(smallest, largest + 2)], counts.tolist()
    counts, edges = np.histogram(values.astype(np.float64), bins=min(FLOAT_BINS, max(1, values.size)))
    return edges.tolist(), counts.tolist()
