"""Building blocks of networks: matrices and tables that know their optimizer group and can fake their storage.

Every module that has parameters of its own maps each one's name to its optimizer group in ``optimizer_groups``.
`components.optimizer` rejects a parameter without a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.quantization import Quantizer
from components.storage import Storage

RMS_EPS = torch.finfo(torch.float32).eps  # explicit: torch's default depends on the input's dtype in some versions
MIN_ORTHOGONAL = 64  # linear weights with a smaller side keep torch's default initialization


def rms_norm(x: Tensor) -> Tensor:
    """Scale the last dimension to unit root mean square, in the input's dtype."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS).to(x.dtype)


@runtime_checkable
class Fakeable(Protocol):
    """A module that can compute with its ``weight`` as an artifact would store it."""

    weight: Tensor
    fake: tuple[Quantizer, Storage] | None
    """How forward passes see the weight; None for the weight itself."""


def seen_weight(module: Fakeable) -> Tensor:
    """The weight that a forward pass uses, float32 [rows, cols]."""
    if module.fake is None:
        return module.weight
    quantizer, storage = module.fake
    return quantizer.fake_quantize(module.weight, storage)


class Linear(nn.Linear):
    """A linear layer without bias; its float32 weight is cast to the input's dtype.

    Args:
        in_features: Channels of the input.
        out_features: Channels of the output.
        optimizer_group: The optimizer group of the weight.
    """

    def __init__(self, in_features: int, out_features: int, optimizer_group: str = "matrices") -> None:
        super().__init__(in_features, out_features, bias=False)
        self.optimizer_groups = {"weight": optimizer_group}
        self.fake: tuple[Quantizer, Storage] | None = None

    def reset_parameters(self) -> None:
        """Orthogonal with gain 1, or torch's default for a matrix with a side under 64."""
        if min(self.weight.shape) >= MIN_ORTHOGONAL:
            nn.init.orthogonal_(self.weight)
        else:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        return F.linear(x, seen_weight(self).to(x.dtype))


class JointLinear(nn.Module):
    """Several linear layers of one input as a single product, faster than one product each.

    The layers keep their own weights, so names, optimizer, quantization and fake quantization are as without it. Here
    they do not run as modules: a hook that needs their input belongs here too.

    Args:
        layers: The layers, which another module owns.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
        super().__init__()
        self.layers = tuple(layers)  # a tuple does not register them a second time

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map [..., in_features] to one [..., out_features] per layer, views of one tensor."""
        weight = torch.cat([seen_weight(layer) for layer in self.layers]).to(x.dtype)
        return F.linear(x, weight).split([layer.out_features for layer in self.layers], dim=-1)


class Embedding(nn.Embedding):
    """A table of float32 rows, looked up by id."""

    optimizer_groups: ClassVar = {"weight": "embeddings"}

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__(num_rows, dim)
        self.fake: tuple[Quantizer, Storage] | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., dim] of the ids [...]."""
        return F.embedding(ids, seen_weight(self))
