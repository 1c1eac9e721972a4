"""Atomic file writes, and files that a user names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.errors import UserError


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that is renamed to `path` when the block ends without an error.

    The bytes reach the disk before the rename, so a power failure leaves either the old file or the new one. After an
    error the temporary file is deleted and any existing `path` is unchanged.
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
    """Write `data` to the file `path`, atomically.

    Raises:
        OSError: the folder is missing, read-only or full; any existing `path` is unchanged.
    """
    with written_beside(path) as scratch:
        scratch.write_bytes(data)


def read_user_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a model's file that the user named.

    Raises:
        UserError: it cannot be read, or has more than ``max_bytes``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file that a fit left.") from error
    if len(data) > max_bytes:
        raise UserError(f"{path} has over {max_bytes:,} bytes, so it is not a model; give a file that a fit left.")
    return data


def write_user_file(path: Path, data: bytes) -> None:
    """Write a file where the user wants it, atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make room or choose another folder, and export again."
        ) from error
