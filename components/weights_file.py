"""Float weights as a ``.safetensors`` file: the public names of the tensors, the network's settings in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from components.artifact import MAX_ELEMENTS, Setting
from components.errors import UserError
from components.files import read_user_file, write_user_file

MAX_HEADER_BYTES = 1 << 20
"""Longer headers are rejected unparsed: a million tensors of one value would take gigabytes as objects."""

MAX_FILE_BYTES = 4 * MAX_ELEMENTS + MAX_HEADER_BYTES
"""Larger files are rejected unread: an artifact could not hold that many values."""

_SETTINGS = "settings"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """What a file holds.

    Attributes:
        settings: the network's settings; None if the file, written by another program, does not say.
        weights: float32 weights by name.
    """

    settings: dict[str, Setting] | None
    weights: dict[str, Tensor]


def write_weights(path: Path, settings: Mapping[str, Setting], weights: Mapping[str, Tensor]) -> None:
    """Write float32 weights and the network's settings, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    metadata = {"format": "pt", _SETTINGS: json.dumps(dict(settings), sort_keys=True)}
    write_user_file(path, safetensors.torch.save(tensors, metadata))


def read_weights(path: Path) -> FloatWeights:
    """Read what `write_weights` or another program wrote.

    Raises:
        UserError: the file cannot be read, is not such a file, or holds something other than float weights.
    """
    remedy = "give a .safetensors file of float weights"
    data = read_user_file(path, MAX_FILE_BYTES)
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        if header_bytes > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        weights = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + header_bytes])
        written = (header.get("__metadata__") or {}).get(_SETTINGS)
        settings = None if written is None else json.loads(written)
    except Exception as error:  # unknown types and impossible shapes raise many error types
        raise UserError(f"{path} is not a sound .safetensors file; {remedy}.") from error
    if settings is not None and not (
        isinstance(settings, dict) and all(isinstance(value, Setting) for value in settings.values())
    ):
        raise UserError(f"The settings in the metadata of {path} are not a network's; {remedy}.")
    if sum(weight.numel() for weight in weights.values()) > MAX_ELEMENTS:
        raise UserError(f"{path} holds more than {MAX_ELEMENTS:,} values; {remedy}.")
    strangers = [name for name, weight in weights.items() if weight.dtype not in _FLOATS]
    if strangers:
        raise UserError(f"{path} holds {strangers[0]} as {weights[strangers[0]].dtype}; {remedy}.")
    return FloatWeights(settings, {name: weight.float() for name, weight in weights.items()})
