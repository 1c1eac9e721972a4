from pathlib import Path

import numpy as np
import pytest

from components.errors import UserError
from datamodules.shards import find_shards, new_shard, open_shard, shard_name, write_shard


def test_write_then_open_gives_the_ids_back_read_only(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    write_shard(path, np.array([1, 1023, 65535], dtype=np.uint16))
    ids = open_shard(path)
    assert ids.tolist() == [1, 1023, 65535]
    assert ids.dtype == np.uint16
    assert not ids.flags.writeable


def test_bytes_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    write_shard(path, np.array([1, 258], dtype=np.uint16))
    content = path.read_bytes()
    assert content[:12] == bytes.fromhex("88d83401 01000000 02000000")
    assert content[12:1024] == bytes(1012)
    assert content[1024:] == bytes([1, 0, 2, 1])


def test_pieces_make_the_same_file_as_one_write(tmp_path: Path) -> None:
    ids = np.arange(10, dtype=np.uint16)
    write_shard(tmp_path / "whole.bin", ids)
    with new_shard(tmp_path / "pieces.bin") as shard:
        shard.append(ids[:3])
        shard.append(ids[3:])
    assert (tmp_path / "pieces.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_a_failed_write_leaves_what_stood_there_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "shard.bin"
    write_shard(path, np.array([7], dtype=np.uint16))

    def stop_half_way() -> None:
        with new_shard(path) as shard:
            shard.append(np.array([8, 9], dtype=np.uint16))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert open_shard(path).tolist() == [7]
    assert list(tmp_path.iterdir()) == [path]


def test_find_shards_sorts_and_keeps_the_splits_apart(tmp_path: Path) -> None:
    for name in (shard_name("train", 10), shard_name("train", 2), shard_name("val", 0), "other.bin"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(tmp_path, "train")] == [
        "fineweb_train_000002.bin",
        "fineweb_train_000010.bin",
    ]
    assert [path.name for path in find_shards(tmp_path, "val")] == ["fineweb_val_000000.bin"]


def test_no_folder_and_no_shards_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data folder at .*missing.*datamodules\.download.*datamodules\.prepare"):
        find_shards(tmp_path / "missing", "train")
    with pytest.raises(UserError, match=r"no val shards .*datamodules\.download.*datamodules\.prepare"):
        find_shards(tmp_path, "val")


def damaged(content: bytearray, kind: str) -> bytes:
    if kind == "empty":
        return b""
    if kind == "short header":
        return bytes(content[:1000])
    if kind == "magic":
        content[0] ^= 1
    if kind == "version":
        content[4] = 2
    if kind == "negative count":
        content[8:12] = b"\xff\xff\xff\xff"
    if kind == "no ids":
        content[8:12] = bytes(4)
        return bytes(content[:1024])
    if kind == "cut":
        return bytes(content[:-1])
    if kind == "too long":
        content += b"\0\0"
    return bytes(content)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is 0 bytes, shorter than its 1024-byte header"),
        ("short header", "is 1000 bytes, shorter than its 1024-byte header"),
        ("magic", "is not a token shard"),
        ("version", "has format version 2"),
        ("negative count", "its header gives -1 ids"),
        ("no ids", "its header gives 0 ids"),
        ("cut", r"is 1029 bytes where its header gives 3 ids \(1030 bytes\)"),
        ("too long", "is 1032 bytes where its header gives 3 ids"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.array([1, 2, 3], dtype=np.uint16))
    path.write_bytes(damaged(bytearray(path.read_bytes()), kind))
    with pytest.raises(UserError, match=message) as error:
        open_shard(path)
    assert str(path) in str(error.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read shard .*gone\.bin \(No such file"):
        open_shard(tmp_path / "gone.bin")
