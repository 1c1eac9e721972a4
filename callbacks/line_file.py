"""A file of lines, each on the disk as soon as it is written; a full disk ends the file, not the run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class LineFile:
    """A new file, of one line per thing that happens in a run.

    Args:
        path: The file, whose folder is created if need be.

    Raises:
        OSError: It cannot be created.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._is_disk_full = False

    def write(self, line: str) -> None:
        """Add a line; the first one that the disk refuses is a warning, and the file then lacks lines."""
        data = (line + "\n").encode()
        try:
            if self._file.write(data) < len(data):  # a disk takes what it has room for before it refuses
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self._is_disk_full:
                rank_zero_warn(f"{self._file.name} lacks lines ({error.strerror}); the run goes on.")
            self._is_disk_full = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()
