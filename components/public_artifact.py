"""The public file format ``.int5int6.ptz``: one zstd frame over a ``torch.save`` of ``{"w": tensors, "m": types}``.

``m`` gives each weight's type. ``{"type": "int5"}``, ``"int6"`` or ``"int8"`` is a matrix; ``w`` holds its int8 codes
and float16 scales under its name plus ``.q`` and ``.scale``. ``"passthrough"`` is a small float16 tensor, and
``"passthrough_fp16"`` is one kept at any size. The format has no place for model settings.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.artifact import MAX_ELEMENTS, MAX_FILE_BYTES
from components.compression import ZSTD_LEVEL, require_zstandard
from components.errors import UserError
from components.files import read_user_file, write_user_file
from components.quantization import StoredTensor
from components.storage import LARGEST_FLOAT16_TENSOR, Storage

_PASSTHROUGH = ("passthrough", "passthrough_fp16")
_QUANTIZED = (Storage.INT5, Storage.INT6, Storage.INT8)


class _Malformed(Exception):  # noqa: N818
    """How the file contradicts the format."""


def read_public_artifact(path: Path | str) -> dict[str, StoredTensor]:
    """The stored tensors of a public file, by name.

    Raises:
        UserError: the file cannot be read, is not a public artifact or is damaged, or zstandard is missing.
    """
    path = Path(path)
    return parse_public_artifact(read_user_file(path, MAX_FILE_BYTES), path)


def write_public_artifact(path: Path | str, tensors: Mapping[str, StoredTensor]) -> int:
    """Write tensors in the public format, atomically.

    Returns:
        The file's length in bytes.

    Raises:
        UserError: a tensor's storage is not supported by the format, zstandard is missing, or the file cannot be
            written.
    """
    for name, tensor in tensors.items():
        if tensor.storage not in (*_QUANTIZED, Storage.FLOAT16):
            raise UserError(
                f"{name} is stored as {tensor.storage}, which the public format does not know; keep the artifact as it "
                "is."
            )
    compressor = require_zstandard().ZstdCompressor(level=ZSTD_LEVEL)
    weights: dict[str, Tensor] = {}
    types: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor.scales is not None:
            weights[f"{name}.q"], weights[f"{name}.scale"] = tensor.values, tensor.scales
            types[name] = {"type": str(tensor.storage)}
        else:
            weights[name] = tensor.values
            small = tensor.values.numel() <= LARGEST_FLOAT16_TENSOR
            types[name] = "passthrough" if small else "passthrough_fp16"
    buffer = io.BytesIO()
    # A view would be saved with all of the storage behind it.
    torch.save({"w": {name: weight.cpu().clone() for name, weight in weights.items()}, "m": types}, buffer)
    data: bytes = compressor.compress(buffer.getvalue())
    write_user_file(Path(path), data)
    return len(data)


def parse_public_artifact(data: bytes, path: Path) -> dict[str, StoredTensor]:
    """The stored tensors of the public file whose bytes are `data`; `path` is for the error messages."""
    try:
        weights, types = _load(_decompress(data))
        tensors = {name: _stored_tensor(name, kind, weights) for name, kind in types.items()}
    except _Malformed as error:
        raise UserError(f"{path} is not a sound public artifact: {error}; copy or export it again.") from error
    return tensors


def _decompress(data: bytes) -> bytes:
    zstandard = require_zstandard()
    too_large = _Malformed(f"it decompresses to more than {MAX_FILE_BYTES:,} bytes")
    try:
        # A frame that states its size gets that much memory, regardless of the limit.
        if zstandard.frame_content_size(data) > MAX_FILE_BYTES:
            raise too_large
        content: bytes = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=MAX_FILE_BYTES, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise _Malformed("it is no whole zstd frame of a possible size") from error
    return content


def _load(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two dictionaries in a ``torch.save``; their tensors are unchecked."""
    no_save = _Malformed('it does not hold a torch.save of {"w": tensors, "m": types}')
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
        # torch.save never compresses, and a compressed entry could be of any size.
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content) for entry in entries):
            raise no_save
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many undocumented types on malformed bytes
        raise no_save from error
    if not isinstance(saved, dict) or not all(isinstance(saved.get(part), dict) for part in ("w", "m")):
        raise no_save
    weights, types = saved["w"], saved["m"]
    if not all(isinstance(name, str) for name in (*weights, *types)):
        raise no_save
    if not all(_is_plain(weight) for weight in weights.values()):
        raise _Malformed('it has something other than plain tensors in "w"')
    # A tensor of stride 0 can have any number of elements.
    if sum(weight.numel() for weight in weights.values()) > MAX_ELEMENTS:
        raise _Malformed(f"it has more than {MAX_ELEMENTS:,} values")
    return weights, types


def _is_plain(weight: object) -> bool:
    return type(weight) is Tensor and weight.layout is torch.strided and not weight.is_quantized


def _stored_tensor(name: str, kind: object, weights: Mapping[str, Tensor]) -> StoredTensor:
    if kind in _PASSTHROUGH:
        values = _part(weights, name, torch.float16)
        tensor = StoredTensor(Storage.FLOAT16, values.contiguous())
    else:
        storage = kind.get("type") if isinstance(kind, dict) else None
        if storage not in _QUANTIZED:
            raise _Malformed(f"it gives {name} the type {kind!r}, which this program does not know")
        codes, scales = _part(weights, f"{name}.q", torch.int8), _part(weights, f"{name}.scale", torch.float16)
        if codes.ndim != 2 or scales.shape != codes.shape[:1]:
            raise _Malformed(f"its codes and scales for {name} do not fit together")
        tensor = StoredTensor(Storage(storage), codes.contiguous(), scales.contiguous())
    if not tensor.is_sound():
        raise _Malformed(f"it has values for {name} that no export writes")
    return tensor


def _part(weights: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    if name not in weights:
        raise _Malformed(f"it lacks {name}")
    if weights[name].dtype != dtype:
        raise _Malformed(f"it holds {name} as {weights[name].dtype} where {dtype} is due")
    return weights[name]
