"""The record of a prepared folder: written and read back, and what it notices."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.manifest import FileRecord, Manifest, SplitRecord, fit_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer, one shard a split and their manifest."""
    for name in ("tokenizer.model", "val.bin", "train.bin"):
        (tmp_path / name).write_bytes(name.encode())
    val, train = (FileRecord.of(tmp_path / name) for name in ("val.bin", "train.bin"))
    Manifest(
        source="a text",
        vocab_size=300,
        tokenizer=FileRecord.of(tmp_path / "tokenizer.model"),
        splits={"val": SplitRecord(2, 30, 99, "00", [val]), "train": SplitRecord(5000, 60_000, 180_000, "11", [train])},
        left_out_of_train=0,
    ).write(tmp_path)
    return tmp_path


def read(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    assert manifest is not None
    return manifest


def test_a_file_is_recorded_by_its_bytes(folder: Path) -> None:
    assert FileRecord.of(folder / "val.bin") == FileRecord("val.bin", 7, hashlib.sha256(b"val.bin").hexdigest())


def test_what_is_written_is_read_back(folder: Path) -> None:
    manifest = read(folder)
    assert (manifest.source, manifest.vocab_size, manifest.left_out_of_train) == ("a text", 300, 0)
    assert manifest.splits["train"].num_tokens == 60_000
    assert [file.name for file in manifest.files()] == ["tokenizer.model", "val.bin", "train.bin"]
    (folder / "again").mkdir()
    manifest.write(folder / "again")
    assert read(folder / "again") == manifest


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\xff", b"[]", b"{}", b'{"splits": 1, "tokenizer": {}}', b'{"datasets": [], "tokenizers": []}'],
)
def test_a_manifest_of_another_program_is_none(folder: Path, content: bytes | None) -> None:
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    assert Manifest.read(folder) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "val.bin", "train.bin"])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"x" * path.stat().st_size)])
def test_any_file_that_is_gone_or_changed_is_noticed(folder: Path, name: str, spoil: Callable[[Path], None]) -> None:
    assert not read(folder).is_damaged(folder)
    spoil(folder / name)
    assert read(folder).is_damaged(folder)


def test_the_report_counts_and_says_what_to_give_to_fit(folder: Path) -> None:
    manifest = read(folder)
    settings = f"--data.path {folder} --data.tokenizer_path {folder}/tokenizer.model"
    assert fit_settings(folder, folder / "tokenizer.model") == f"give to fit: {settings}"
    assert manifest.report(folder).splitlines() == [
        "val: 2 documents, 30 tokens, shards: 1, 99 bytes of text",
        "train: 5,000 documents, 60,000 tokens, shards: 1, 180,000 bytes of text",
        f"give to fit: {settings}",
    ]


def test_documents_left_out_are_reported(folder: Path) -> None:
    manifest = Manifest(**{**read(folder).__dict__, "left_out_of_train": 1234})
    assert "left out of train, because val has them too: 1,234 documents" in manifest.report(folder)
