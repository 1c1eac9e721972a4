"""Atomic file writes, and files that a user names."""

import os
import stat
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
        UserError: it cannot be read, is a pipe or a device, or has more than ``max_bytes``.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            is_plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            data = file.read(max_bytes + 1) if is_plain else b""
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file that a fit left.") from error
    except ValueError as error:  # a NUL, or a character that no file name can have
        raise UserError(f"{str(path)!r} cannot be read ({error}); give a file that a fit left.") from error
    if not is_plain:
        raise UserError(f"{path} is a pipe or a device, so it is not a model; give a file that a fit left.")
    if len(data) > max_bytes:
        raise UserError(f"{path} has over {max_bytes:,} bytes, so it is not a model; give a file that a fit left.")
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes to would otherwise block forever."""
    return os.open(path, flags | os.O_NONBLOCK)


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
