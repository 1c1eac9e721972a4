"""Without zstandard, reading and writing models ends in one sentence."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from components.artifact import read_artifact, write_artifact
from components.compression import require_zstandard
from components.errors import UserError
from components.public_artifact import read_public_artifact, write_public_artifact


def test_the_package_is_the_installed_one() -> None:
    assert require_zstandard() is zstandard


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: read_artifact(folder / "model.golf"),
        lambda folder: read_public_artifact(folder / "model.ptz"),
        lambda folder: write_artifact(folder / "new", {}, {}),
        lambda folder: write_public_artifact(folder / "new", {}),
    ],
)
def test_a_missing_package_is_named_and_nothing_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    write_artifact(tmp_path / "model.golf", {}, {})
    write_public_artifact(tmp_path / "model.ptz", {})
    monkeypatch.setitem(sys.modules, "zstandard", None)  # what an import then meets is an ImportError
    with pytest.raises(UserError, match=r"which is not installed; run `pip install zstandard`\.$"):
        use(tmp_path)
    assert not (tmp_path / "new").exists()
