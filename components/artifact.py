"""The artifact: one file, extension ``.golf``, that holds a model's settings and its stored weights, and no code.

Numbers are little-endian. The file is, without gaps:

=========== ==================================================================================================
bytes       what
=========== ==================================================================================================
8           magic ``89 47 4F 4C 46 0D 0A 1A`` (``\\x89GOLF\\r\\n\\x1a``; changing line endings breaks it)
4           version, 2
4           length of the header
4           length of the model
8           length of the file
16          BLAKE2b-128 of the rest of the file, preceded by the fields above
header      zstd frame over JSON: ``{"settings": {name: value}, "storage": [rule, ...], "tensors": [[name, storage,
            shape], ...]}``, keys and tensors sorted by name; storage is ``int5``, ``int6``, ``int7``, ``int8`` or
            ``float16``; a rule has the fields of `components.storage.StorageRule`; files older than rules have none
model       zstd frame over the statistical model of the values; see `components.weight_coding`
the rest    the values, coded with that model by `components.rans`
=========== ==================================================================================================

Version 1 had no ``int7``, so its model lacks the frequency tables of those codes. Version 1 files can still be read.

Weight codes have no repetitions for zstd to find, and its Huffman stage spends whole bits. Fractional-bit tables
chosen by row and column take 2.6% less than a zstd-22 stream per byte plane on trained weights, 1.3% less on Gaussian
ones, and a fifth of the time. zstd is still used for the small parts.

A reader need not trust the file: every length is checked before anything of that size is allocated, tensors have at
most `MAX_ELEMENTS` values in total, and one checksum covers every byte.

``python -m components.artifact_report FILE`` describes a file.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.compression import ZSTD_LEVEL, require_zstandard
from components.errors import UserError
from components.files import read_user_file, write_user_file
from components.quantization import StoredTensor
from components.rans import CorruptStreamError
from components.storage import Storage, StorageRule
from components.weight_coding import NUM_KINDS, TensorForm, decode_tensors, encode_tensors, model_bytes

MAX_BYTES = 16_000_000
"""The challenge's cap on artifact plus code, in bytes."""

MAX_ELEMENTS = 4 * MAX_BYTES
"""The most values that a file may hold: at two bits each they fill the cap."""

MAX_FILE_BYTES = 3 * MAX_ELEMENTS
"""Larger files are rejected unread; `MAX_ELEMENTS` values never take this much."""

MAGIC = b"\x89GOLF\r\n\x1a"
VERSION = 2

Setting = bool | int | float | str | None

_NUM_KINDS = {1: 5, VERSION: NUM_KINDS}
"""The number of plane kinds that each file version may have."""

_PREAMBLE = struct.Struct("<8sIIIQ")
_DIGEST_BYTES = 16
_FIRST_BYTES = _PREAMBLE.size + _DIGEST_BYTES
_MAX_HEADER_BYTES = 1 << 20
_MAX_RANK = 8


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a file holds.

    Attributes:
        settings: the model's settings; None for a public file, which has none.
        tensors: the stored weights by name.
        rules: the storage rules that the weights were stored by; empty if the file does not say.
    """

    settings: dict[str, Setting] | None
    tensors: dict[str, StoredTensor]
    rules: tuple[StorageRule, ...] = ()


class _Damage(Exception):  # noqa: N818
    """How the file contradicts the format."""


def write_artifact(
    path: Path | str,
    settings: Mapping[str, Setting],
    tensors: Mapping[str, StoredTensor],
    rules: Sequence[StorageRule] = (),
) -> int:
    """Write settings, tensors and their storage rules as an artifact atomically.

    The same settings, tensors and rules give the same bytes; the order of settings and tensors does not matter.

    Returns:
        The file's length in bytes.

    Raises:
        UserError: zstandard is missing, the model holds more than `MAX_ELEMENTS` values, or the file cannot be
            written.
    """
    path = Path(path)
    compressor = require_zstandard().ZstdCompressor(level=ZSTD_LEVEL)
    names = sorted(tensors)
    stored = [tensors[name] for name in names]
    forms = [TensorForm(tensor.storage, tuple(tensor.values.shape)) for tensor in stored]
    if _num_elements(forms) > MAX_ELEMENTS:
        raise UserError(
            f"The model has {_num_elements(forms):,} values and an artifact holds {MAX_ELEMENTS:,} at most; "
            f"make the network smaller to export it to {path}."
        )
    description = {
        "settings": dict(settings),
        "storage": [asdict(rule) for rule in rules],
        "tensors": [[name, form.storage, form.shape] for name, form in zip(names, forms, strict=True)],
    }
    header_json = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    assert len(header_json) <= _MAX_HEADER_BYTES
    model, values = encode_tensors(stored)
    header, model = compressor.compress(header_json), compressor.compress(model)
    length = _FIRST_BYTES + len(header) + len(model) + len(values)
    preamble = _PREAMBLE.pack(MAGIC, VERSION, len(header), len(model), length)
    rest = header + model + values
    write_user_file(path, preamble + _digest(preamble, rest) + rest)
    return length


def read_artifact(path: Path | str) -> Artifact:
    """Read what `write_artifact` wrote.

    Raises:
        UserError: the file cannot be read, is not an artifact, is truncated, damaged or of a newer version, or
            zstandard is missing.
    """
    path = Path(path)
    return parse_artifact(read_user_file(path, MAX_FILE_BYTES), path)


def parse_artifact(data: bytes, path: Path) -> Artifact:
    """The artifact whose bytes are `data`; `path` is for the error messages of `read_artifact`."""
    if not data or not data.startswith(MAGIC[: len(data)]):
        raise UserError(f"{path} is not an artifact; give a file that fit exported.")
    if len(data) < _FIRST_BYTES:
        raise UserError(f"{path} is truncated to {len(data)} bytes; copy or export it again.")
    _, version, header_bytes, model_frame_bytes, length = _PREAMBLE.unpack_from(data)
    if version > VERSION:
        raise UserError(
            f"{path} has version {version} of the artifact format and this program reads version {VERSION}; "
            f"use the newer program that wrote it."
        )
    if len(data) < length:
        raise UserError(f"{path} is truncated to {len(data):,} of {length:,} bytes; copy or export it again.")
    try:
        if version not in _NUM_KINDS or len(data) > length:
            raise _Damage("its first bytes are wrong")
        rest = data[_FIRST_BYTES:]
        if data[_PREAMBLE.size : _FIRST_BYTES] != _digest(data[: _PREAMBLE.size], rest):
            raise _Damage("its checksum does not match")
        header, rest = rest[:header_bytes], rest[header_bytes:]
        settings, rules, named_forms = _parse_header(_decompress(header, "header", most=_MAX_HEADER_BYTES), version)
        forms = list(named_forms.values())
        expected = model_bytes(forms, _NUM_KINDS[version])
        model = _decompress(rest[:model_frame_bytes], "model", most=expected, least=expected)
        tensors = decode_tensors(forms, model, rest[model_frame_bytes:], _NUM_KINDS[version])
        if not all(tensor.is_sound() for tensor in tensors):
            raise _Damage("it holds values that no export writes")
    except (_Damage, CorruptStreamError) as damage:
        reason = str(damage) or "its values do not decode"
        raise UserError(f"{path} is damaged: {reason}; copy or export it again.") from damage
    return Artifact(settings, dict(zip(named_forms, tensors, strict=True)), rules)


def _digest(preamble: bytes, rest: bytes) -> bytes:
    digest = hashlib.blake2b(preamble, digest_size=_DIGEST_BYTES)
    digest.update(rest)
    return digest.digest()


def _num_elements(forms: Sequence[TensorForm]) -> int:
    # A shape such as [0, 10**9] holds nothing but still has a level for each column.
    return sum(max(math.prod(form.shape), *form.shape, 1) for form in forms)


def _decompress(frame: bytes, part: str, *, most: int, least: int = 0) -> bytes:
    """The contents of the one zstd frame, between `least` and `most` bytes."""
    zstandard = require_zstandard()
    try:
        if not least <= zstandard.frame_content_size(frame) <= most:
            raise _Damage(f"its {part} says that it has an impossible size")
        content: bytes = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _Damage(f"its {part} does not decompress") from error
    return content


def _parse_header(
    content: bytes, version: int
) -> tuple[dict[str, Setting], tuple[StorageRule, ...], dict[str, TensorForm]]:
    wrong = _Damage("its header is not as the format says")
    try:
        header = json.loads(content)
        settings, listed = header["settings"], header["tensors"]
        forms = {name: TensorForm(Storage(storage), tuple(shape)) for name, storage, shape in listed}
        rules = tuple(_parse_rule(**rule) for rule in header.get("storage", ()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise wrong from error
    sound = (
        isinstance(settings, dict)
        and all(isinstance(value, Setting) for value in settings.values())
        and len(forms) == len(listed)
        and all(isinstance(name, str) and _is_possible(form, version) for name, form in forms.items())
    )
    if not sound:
        raise wrong
    if _num_elements(list(forms.values())) > MAX_ELEMENTS:
        raise _Damage(f"its header lists more than {MAX_ELEMENTS:,} values")
    return settings, rules, forms


def _parse_rule(names: str, storage: Any, at_most: int, qat: bool) -> StorageRule:
    if type(names) is not str or type(at_most) is not int or type(qat) is not bool:
        raise TypeError("a storage rule's fields are of other types")
    return StorageRule(names, Storage(storage).value, at_most, qat)


def _is_possible(form: TensorForm, version: int) -> bool:
    if form.storage is Storage.INT7 and version == 1:
        return False
    rank_fits = len(form.shape) == 2 if form.storage is not Storage.FLOAT16 else len(form.shape) <= _MAX_RANK
    return rank_fits and all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in form.shape)
