"""Read documents from JSONL, Parquet or plain text, optionally gzip or zstd, from paths, folders or standard input.

A document is the UTF-8 bytes of its text. Only one document (or Parquet row group) is in memory at a time.
"""

import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import pyarrow
import pyarrow.parquet

from components.errors import UserError
from datamodules.tokenizer import MAX_DOCUMENT_BYTES

Format = Literal["jsonl", "parquet", "text"]
FORMATS: tuple[Format, ...] = get_args(Format)
STANDARD_INPUT = "-"

SECTION_BYTES = 1 << 13
"""A plain text file is cut into documents at the first blank line after this many bytes."""
LONG_SECTION_BYTES = 1 << 14
"""Where no blank line comes, it is cut at the first end of a line after this many."""

_SUFFIX_FORMATS: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    ".parquet": "parquet",
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
}
_COMPRESSION_SUFFIXES = (".gz", ".zst")
_COMPRESSION_BY_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET_ROWS = 1024


def find_files(folder: Path) -> list[Path]:
    """The files of text in a folder and the folders in it, in the order of their paths; hidden ones do not count.

    Raises:
        UserError: no file has a name by which its format is known.
    """
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if _text_suffix(path) in _SUFFIX_FORMATS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(
            f"{folder} has no file named *{', *'.join(_SUFFIX_FORMATS)}, nor one of these in gzip or zstd: "
            "give the files by their names"
        )
    return files


def read_documents(source: str, file_format: Format | None = None) -> Iterator[bytes]:
    """Yield one file's documents in order as UTF-8; compression is detected from the file's first bytes.

    Args:
        source: a path, or `-` for standard input.
        file_format: JSONL has an object with a `text` string on each line. Parquet has a `text` column. A plain text
            file is cut into documents at blank lines (see `SECTION_BYTES`). None infers the format from the file
            name: an unknown suffix means plain text, and standard input means JSONL.

    Raises:
        UserError: the file is missing, damaged or in another format, or a document is too large. The message gives
            the file and line.
    """
    file_format = file_format or _format_of(source)
    readers = {"jsonl": _read_jsonl, "parquet": _read_parquet, "text": _read_text}
    try:
        with sys.stdin.buffer if source == STANDARD_INPUT else open(source, "rb") as file:
            yield from readers[file_format](_decompressed(file), source)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {source}: check its name") from error
    except (OSError, pyarrow.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"cannot read {source} as {file_format} ({reason}): give complete files of that format"
        ) from error


def _format_of(source: str) -> Format:
    if source == STANDARD_INPUT:
        return "jsonl"
    return _SUFFIX_FORMATS.get(_text_suffix(Path(source)), "text")


def _text_suffix(path: Path) -> str:
    """A file name's suffix without that of its compression."""
    return path.with_suffix("").suffix if path.suffix in _COMPRESSION_SUFFIXES else path.suffix


def _decompressed(file: BinaryIO) -> BinaryIO:
    assert isinstance(file, io.BufferedReader)
    first_bytes = file.peek(4)
    for magic, compression in _COMPRESSION_BY_MAGIC.items():
        if first_bytes.startswith(magic):
            # Unlike zstandard's, pyarrow's decompression reports a truncated stream.
            return io.BufferedReader(pyarrow.CompressedInputStream(file, compression), 1 << 20)
    return file


def _read_jsonl(file: BinaryIO, source: str) -> Iterator[bytes]:
    number = 0
    while line := file.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        where = f"line {number} of {source}"
        _check_size(line, where)
        if line.isspace():
            continue
        try:
            text = json.loads(line)["text"].encode()
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f'{where} is not a JSON object with a "text" string in UTF-8: repair the line or give --format'
            ) from error
        yield text


def _read_parquet(file: BinaryIO, source: str) -> Iterator[bytes]:
    with tempfile.TemporaryFile() as seekable:
        if not file.seekable():
            shutil.copyfileobj(file, seekable)
            file = seekable
        table = pyarrow.parquet.ParquetFile(file)
        if "text" not in table.schema_arrow.names:
            raise UserError(f"{source} has no column named text but {table.schema_arrow.names}: rename the column")
        row = 0
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=["text"]):
            for value in batch.column(0):
                row += 1
                text = value.as_py()
                if not isinstance(text, str):
                    raise UserError(f"row {row} of {source} has no text: leave the row out")
                document = text.encode()
                _check_size(document, f"row {row} of {source}")
                yield document


def _read_text(file: BinaryIO, source: str) -> Iterator[bytes]:
    num_bytes = 0
    for document in _sections(file):
        _check_size(document, f"the text from byte {num_bytes} of {source}")
        try:
            document.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{source} is not UTF-8 text (byte {num_bytes + error.start}): convert it, such as by "
                "`iconv -f latin1 -t utf-8`, or `-f utf-16` if Windows wrote it"
            ) from error
        num_bytes += len(document)
        if not document.isspace():
            yield document


def _sections(file: BinaryIO) -> Iterator[bytes]:
    section = b""
    while line := file.readline(MAX_DOCUMENT_BYTES + 1):
        section += line
        if len(section) >= (SECTION_BYTES if line.isspace() else LONG_SECTION_BYTES):
            yield section
            section = b""
    if section:
        yield section


def _check_size(document: bytes, where: str) -> None:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise UserError(f"{where} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB: split it into several documents")
