"""A sound submission, made once and copied for each test."""

import shutil
from pathlib import Path

import pytest

from tests.records.audit.support import small_data, write_submission


@pytest.fixture(scope="session")
def _sound(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audit")
    data = small_data(_corpus, root / "data")
    write_submission(root / "submission", data)
    return root


@pytest.fixture
def data(_sound: Path) -> Path:
    return _sound / "data"


@pytest.fixture
def folder(_sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_sound / "submission", tmp_path / "submission"))


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
