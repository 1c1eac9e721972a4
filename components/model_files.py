"""Any file that holds a model: an artifact of this project, or the public script's."""

from pathlib import Path

from components.artifact import MAX_FILE_BYTES, Artifact, parse_artifact
from components.files import read_user_file
from components.public_artifact import ZSTD_MAGIC, parse_public_artifact


def read_any_artifact(path: Path | str) -> Artifact:
    """Read an artifact of either format, told apart by its first bytes.

    Raises:
        UserError: as `components.artifact.read_artifact` and `components.public_artifact.read_public_artifact`.
    """
    path = Path(path)
    data = read_user_file(path, MAX_FILE_BYTES)
    if data.startswith(ZSTD_MAGIC):
        return Artifact(None, parse_public_artifact(data, path))
    return parse_artifact(data, path)
