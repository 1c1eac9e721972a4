"""The zstandard package, or a clear error if it is missing."""

from types import ModuleType

from components.errors import UserError

ZSTD_LEVEL = 22

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""The first bytes of a zstd frame."""


def require_zstandard() -> ModuleType:
    """The zstandard package.

    Raises:
        UserError: it is not installed. There is no fallback compression, because the files would differ.
    """
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            "Artifacts need the package zstandard, which is not installed; run `pip install zstandard`."
        ) from error
    return zstandard
