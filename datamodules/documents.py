"""Read documents from JSONL, Parquet or plain text, optionally gzip or zstd, from a path or standard input.

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

_SUFFIX_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_COMPRESSION_BY_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PARQUET_ROWS = 1024


def read_documents(source: str, file_format: Format | None = None) -> Iterator[bytes]:
    """Yield one file's documents in order as UTF-8; compression is detected from the file's first bytes.

    Args:
        source: a path, or `-` for standard input.
        file_format: JSONL has an object with a `text` string on each line. Parquet has a `text` column. A plain text
            file is one document. None infers the format from the file name: an unknown suffix means plain text, and
            standard input means JSONL.

    Raises:
        UserError: the file is missing, damaged or in another format, or a document is too large. The message gives
            the file and line.
    """
    file_format = file_format or _format_of(source)
    readers = {"jsonl": _read_jsonl, "parquet": _read_parquet, "text": _read_text}
    try:
        with sys.stdin.buffer if source == STANDARD_INPUT else open(source, "rb") as file:
            yield from readers[file_format](_decompressed(file), source)
    except (OSError, pyarrow.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"cannot read {source} as {file_format} ({reason}): give complete files of that format"
        ) from error


def _format_of(source: str) -> Format:
    if source == STANDARD_INPUT:
        return "jsonl"
    name = Path(source)
    suffix = name.with_suffix("").suffix if name.suffix in (".gz", ".zst") else name.suffix
    return _SUFFIX_FORMATS.get(suffix, "text")


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
    document = file.read(MAX_DOCUMENT_BYTES + 1)
    _check_size(document, source)
    try:
        document.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text (byte {error.start}): convert it") from error
    yield document


def _check_size(document: bytes, where: str) -> None:
    if len(document) > MAX_DOCUMENT_BYTES:
        raise UserError(f"{where} is larger than {MAX_DOCUMENT_BYTES >> 20} MiB: split it into several documents")
