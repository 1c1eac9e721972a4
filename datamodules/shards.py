"""The shard file format: 256 little-endian int32 header words, then little-endian uint16 token ids.

Header word 0 is `MAGIC`, word 1 is `VERSION` and word 2 is the number of ids; the rest are zero. The published
FineWeb export uses this format.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from components.errors import UserError
from components.files import written_beside

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = HEADER_WORDS * 4
TOKEN_DTYPE = np.dtype("<u2")

Split = Literal["train", "val"]
TokenIds = npt.NDArray[np.uint16]


def shard_name(split: Split, index: int) -> str:
    """The file name of a split's shard; names sort in stream order."""
    return f"fineweb_{split}_{index:06d}.bin"


def find_shards(folder: Path | str, split: Split) -> list[Path]:
    """The paths of a split's shards in stream order.

    Raises:
        UserError: the folder is missing or has no shard of this split.
    """
    folder = Path(folder)
    remedy = (
        "download the published shards with `python -m datamodules.download` "
        "or make them from your own text with `python -m datamodules.prepare`"
    )
    if not folder.is_dir():
        raise UserError(f"no data folder at {folder}: {remedy}")
    paths = sorted(folder.glob(f"fineweb_{split}_*.bin"))
    if not paths:
        raise UserError(f"no {split} shards (fineweb_{split}_*.bin) in {folder}: {remedy}")
    return paths


def open_shard(path: Path | str) -> TokenIds:
    """Open a shard's ids as a read-only memory map, shape [num_ids].

    Raises:
        UserError: the file is missing or empty, its magic number or version is wrong, or its length does not match its
            header.
    """
    path = Path(path)
    remedy = "delete it and download or prepare it again"
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"shard {path} is a pipe or a device, or a folder: {remedy}")
        num_bytes = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER_WORDS)
    except OSError as error:
        raise UserError(f"cannot read shard {path} ({error.strerror}): {remedy}") from error
    if len(header) < HEADER_WORDS:
        raise UserError(f"shard {path} is {num_bytes} bytes, shorter than its {HEADER_BYTES}-byte header: {remedy}")
    magic, version, num_ids = (int(word) for word in header[:3])
    if magic != MAGIC:
        raise UserError(f"{path} is not a token shard (magic number {magic}, expected {MAGIC}): {remedy}")
    if version != VERSION:
        raise UserError(f"shard {path} has format version {version}, this program reads version {VERSION}: {remedy}")
    expected_bytes = HEADER_BYTES + num_ids * TOKEN_DTYPE.itemsize
    if num_ids <= 0 or num_bytes != expected_bytes:
        raise UserError(
            f"shard {path} is {num_bytes} bytes where its header gives {num_ids} ids ({expected_bytes} bytes): {remedy}"
        )
    return np.memmap(path, dtype=TOKEN_DTYPE, mode="r", offset=HEADER_BYTES, shape=(num_ids,)).view(np.ndarray)


class ShardFile:
    """A shard being written piece by piece; created by `new_shard`."""

    def __init__(self, file: BinaryIO) -> None:
        """Reserve the header at the start of `file`."""
        self.num_ids = 0
        self._file = file
        file.write(bytes(HEADER_BYTES))

    def append(self, ids: TokenIds) -> None:
        """Write more ids, shape [n]."""
        self._file.write(ids.astype(TOKEN_DTYPE, copy=False).tobytes())
        self.num_ids += len(ids)

    def finish(self) -> None:
        """Write the header, since the number of ids is now known."""
        header = np.zeros(HEADER_WORDS, dtype="<i4")
        header[:3] = MAGIC, VERSION, self.num_ids
        self._file.seek(0)
        self._file.write(header.tobytes())


@contextmanager
def new_shard(path: Path | str) -> Iterator[ShardFile]:
    """Open a shard to append ids to; the file appears once the block ends without an error."""
    with written_beside(Path(path)) as scratch, scratch.open("wb") as file:
        shard = ShardFile(file)
        yield shard
        shard.finish()


def write_shard(path: Path | str, ids: TokenIds) -> None:
    """Write ids of shape [num_ids] as one shard."""
    with new_shard(path) as shard:
        shard.append(ids)


def write_shards(pieces: Iterable[TokenIds], folder: Path, split: Split, shard_tokens: int) -> list[Path]:
    """Write a stream of ids, in pieces of any length, as a split's shards.

    Every shard except the last has `shard_tokens` ids. Returns the paths; no ids means no shards.
    """
    paths: list[Path] = []
    remaining = iter(pieces)
    piece = next(remaining, None)
    while piece is not None:
        paths.append(folder / shard_name(split, len(paths)))
        with new_shard(paths[-1]) as shard:
            while piece is not None and shard.num_ids < shard_tokens:
                room = shard_tokens - shard.num_ids
                shard.append(piece[:room])
                piece = piece[room:] if len(piece) > room else next(remaining, None)
    return paths
