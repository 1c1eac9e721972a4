"""Any artifact that holds a model: this project's, or the public script's."""

from pathlib import Path

from components.artifact import MAX_FILE_BYTES, Artifact, parse_artifact
from components.compression import ZSTD_MAGIC
from components.errors import UserError
from components.files import read_user_file


def read_any_artifact(path: Path | str) -> Artifact:
    """Read an artifact of either format, told apart by its first bytes.

    Raises:
        UserError: as `components.artifact.read_artifact` and `components.public_artifact.read_public_artifact`, or the
            file is public and the program is a packed script, which cannot read it.
    """
    path = Path(path)
    data = read_user_file(path, MAX_FILE_BYTES)
    if not data.startswith(ZSTD_MAGIC):
        return parse_artifact(data, path)
    try:
        # Imported here so that a packed script, which only needs its own format, can omit it.
        from components.public_artifact import parse_public_artifact
    except ImportError as error:
        raise UserError(f"{path} has the public format, which a packed script cannot read; use cli.py.") from error
    return Artifact(None, parse_public_artifact(data, path))
