"""Fixtures of the tests of the components."""

from pathlib import Path

import pytest

from components.artifact import write_artifact
from tests.components.support import SETTINGS, small_tensors


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of ``SETTINGS`` and ``small_tensors``; for reading only."""
    path = tmp_path_factory.mktemp("artifact") / "small.golf"
    write_artifact(path, SETTINGS, small_tensors())
    return path
