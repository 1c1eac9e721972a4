"""Files are written whole or not at all, and what is wrong with a user's file is one sentence."""

import errno
import os
import re
from pathlib import Path

import pytest

from components.errors import UserError
from components.files import read_user_file, write_user_file, write_whole, written_beside


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with written_beside(path) as scratch:
        scratch.write_bytes(b"new")
        assert scratch.parent == tmp_path  # a rename to another file system would copy
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_stands_and_no_part_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with written_beside(path) as scratch:
            scratch.write_bytes(b"half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", watch)
    write_whole(path, b"bytes")
    assert synced == [(5, False)]
    assert path.read_bytes() == b"bytes"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.golf"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"model\.golf cannot be written \(No space left on device\); make room or choose"
    ):
        write_user_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/model\.golf cannot be written \(No such file or directory\)"):
        write_user_file(tmp_path / "nowhere" / "model.golf", b"new")
    assert not any(tmp_path.iterdir())


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "model.golf"
    path.write_bytes(bytes(1234))
    assert read_user_file(path, 1234) == bytes(1234)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))} has over 1,233 bytes, so it is not a model; give"):
        read_user_file(path, 1233)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "missing", "No such file or directory"), (tmp_path, "Is a directory")]:
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))} cannot be read \({reason}\); give a file"):
            read_user_file(path, 10)


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match=f"^{path} is a pipe or a device, so it is not a model; give a file"):
            read_user_file(path, 10)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=["NUL", "half a surrogate pair"])
def test_a_name_that_no_file_can_have_is_printed_readably(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_user_file(tmp_path / name, 10)
    assert repr(name)[1:-1] in str(caught.value)
    assert str(caught.value).isprintable()
