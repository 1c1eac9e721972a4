import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from components.errors import UserError
from datamodules import documents
from datamodules.documents import Format, find_files, read_documents

TEXTS = ["first\nline", "", "h\u00e9 \u2014 \U0001f600", "last"]
DOCUMENTS = [text.encode() for text in TEXTS]

Compress = Callable[[bytes], bytes]
COMPRESSIONS: dict[str, Compress] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def jsonl() -> bytes:
    return "".join(json.dumps({"id": 7, "text": text}) + "\n" for text in TEXTS).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3, 4], "text": TEXTS}), buffer, row_group_size=3)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize(("file_format", "content"), [("jsonl", jsonl), ("parquet", parquet)])
def test_formats_and_compressions_from_paths_and_standard_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    file_format: Format,
    content: Callable[[], bytes],
) -> None:
    compressed = COMPRESSIONS[suffix](content())
    path = tmp_path / f"docs.{file_format}{suffix}"
    path.write_bytes(compressed)
    assert list(read_documents(str(path))) == DOCUMENTS
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(compressed))))
    assert list(read_documents("-", file_format)) == DOCUMENTS


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time and cannot seek, as a pipe."""

    def __init__(self, content: bytes) -> None:
        self.rest = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        piece, self.rest = self.rest[: min(7, len(buffer))], self.rest[min(7, len(buffer)) :]
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_short_plain_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"book.txt{suffix}"
    path.write_bytes(COMPRESSIONS[suffix]("Chapter 1\n\nh\u00e9\n".encode()))
    assert list(read_documents(str(path))) == ["Chapter 1\n\nh\u00e9\n".encode()]


def test_a_long_plain_file_is_cut_at_blank_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SECTION_BYTES", 8)
    monkeypatch.setattr(documents, "LONG_SECTION_BYTES", 20)
    path = tmp_path / "book.txt"
    sections = [b"one\n\ntwo\n\n", b"seven by seven\r\n\r\n", b"of a paragraph without end\n", b"\n  \nlast"]
    path.write_bytes(b"".join(sections))
    assert list(read_documents(str(path))) == sections


def test_text_that_is_only_space_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(b"\n \n" * 9000)
    assert list(read_documents(str(path))) == []


def test_a_folder_gives_its_files_of_text_in_order(tmp_path: Path) -> None:
    kept = ["a/z.jsonl.zst", "b/c.md", "b.txt", "d.parquet"]
    for name in [*kept, "picture.png", ".git/log.txt", "a/.hidden.txt", "script.py", "notes.gz"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_files(tmp_path) == [tmp_path / name for name in kept]


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no file named \*\.jsonl, .*\*\.txt"):
        find_files(tmp_path)


def test_standard_input_is_jsonl_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(jsonl()))))
    assert list(read_documents("-")) == DOCUMENTS


def test_blank_lines_of_jsonl_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'\n{"text": "a"}\n  \n{"text": "b"}')
    assert list(read_documents(str(path))) == [b"a", b"b"]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b"{}",
        b'{"text": null}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    reader = read_documents(str(path))
    assert next(reader) == b"fine"
    with pytest.raises(UserError, match=r"line 2 of .*docs\.jsonl is not a JSON object with a \"text\" string"):
        next(reader)


def test_parquet_without_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "docs.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(UserError, match=r"docs\.parquet has no column named text but \['body'\]"):
        list(read_documents(str(path)))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(UserError, match=r"row 2 of .*docs\.parquet has no text"):
        list(read_documents(str(path)))


def test_a_plain_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"ab\xe9cd")
    with pytest.raises(UserError, match=r"book\.txt is not UTF-8 text \(byte 2\)"):
        list(read_documents(str(path)))


@pytest.mark.parametrize("name", ["docs.jsonl.gz", "docs.jsonl.zst", "docs.parquet", "docs.parquet.zst"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = (jsonl() if "jsonl" in name else parquet()) * 100
    path.write_bytes(COMPRESSIONS[path.suffix if path.suffix in COMPRESSIONS else ""](content)[:-3])
    with pytest.raises(UserError, match=rf"cannot read .*{name} as (jsonl|parquet)"):
        list(read_documents(str(path)))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*gone\.txt: check its name"):
        list(read_documents(str(tmp_path / "gone.txt")))
    with pytest.raises(UserError, match="Is a directory"):
        list(read_documents(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"x" * 11), ("a.jsonl", b'{"text": "abc"}\n'), ("a.parquet", b"")]
)
def test_a_document_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 9)
    path = tmp_path / name
    path.write_bytes(content or parquet())
    with pytest.raises(UserError, match=rf"{name} is larger than"):
        list(read_documents(str(path)))
