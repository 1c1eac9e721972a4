"""Either format of a model's file is known by its first bytes."""

from pathlib import Path

import pytest

from components.artifact import write_artifact
from components.errors import UserError
from components.model_files import read_any_artifact
from components.public_artifact import write_public_artifact
from components.storage import RECIPE
from tests.components.support import SETTINGS, assert_same, small_tensors
from tests.support import GOLDEN, needs_golden


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    write_artifact(tmp_path / "one.ptz", SETTINGS, small_tensors(), RECIPE)
    write_public_artifact(tmp_path / "other.golf", small_tensors())
    own, public = read_any_artifact(tmp_path / "one.ptz"), read_any_artifact(str(tmp_path / "other.golf"))
    assert (own.settings, own.rules) == (SETTINGS, RECIPE)
    assert (public.settings, public.rules) == (None, ())
    assert_same(own.tensors, small_tensors())
    assert_same(public.tensors, small_tensors())


@needs_golden
def test_either_format_holds_the_golden_weights(tmp_path: Path) -> None:
    public = read_any_artifact(GOLDEN / "artifact.int5int6.ptz")
    assert public.settings is None
    write_artifact(tmp_path / "model.golf", SETTINGS, public.tensors)
    assert_same(read_any_artifact(tmp_path / "model.golf").tensors, public.tensors)


@pytest.mark.parametrize("content", [b"", b"text", b"\x28\xb5"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign").write_bytes(content)
    with pytest.raises(UserError, match="foreign is not an artifact; give a file that fit exported"):
        read_any_artifact(tmp_path / "foreign")
