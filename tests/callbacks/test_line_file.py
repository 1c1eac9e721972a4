"""A file of lines: on the disk at once, and ended by a full disk without an error."""

from pathlib import Path

import pytest

from callbacks.line_file import LineFile


def test_a_line_is_on_the_disk_at_once(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "new" / "lines")
    file.write("one")
    file.write("two \N{EN DASH}")
    assert (tmp_path / "new" / "lines").read_text() == "one\ntwo \N{EN DASH}\n"
    file.close()


def test_a_full_disk_is_one_warning(small_disk: Path) -> None:
    file = LineFile(small_disk / "lines")
    (small_disk / "fill").write_bytes(bytes((2 << 20) - (4 << 10)))
    with pytest.warns(UserWarning, match="lines lacks lines .*; the run goes on") as warnings:
        file.write("x" * 8192)
    file.write("y" * 8192)  # a second warning would be an error
    assert len(warnings) == 1
    file.close()
