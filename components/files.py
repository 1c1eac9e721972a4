"""Files that are never half-written."""

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` under a scratch name beside `path`, then give it the name.

    The bytes reach the disk before the name does, so a power cut leaves the old file or the new one.

    Raises:
        OSError: the folder is missing, read-only or full; whatever stood under `path` still stands, and no part of
            the new file does.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
