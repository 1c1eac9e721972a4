"""Files that are never half-written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a scratch path in the same folder that takes the name `path` when the block ends without an error.

    The bytes reach the disk before the name does, so that a power cut leaves the old file or the new one. After an
    error the scratch file is gone and whatever stood under `path` still stands.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        descriptor = os.open(scratch, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` as the file `path`, wholly or not at all.

    Raises:
        OSError: the folder is missing, read-only or full; whatever stood under `path` still stands.
    """
    with written_beside(path) as scratch:
        scratch.write_bytes(data)
