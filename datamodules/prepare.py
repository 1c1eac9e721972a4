"""Make training data from your own text: `python -m datamodules.prepare FILE... --out FOLDER`.

The folder gets the shards of both splits, the tokenizer and a manifest. The first documents become the validation
split. Training documents that are also in the validation split are skipped. The output does not depend on the number
of workers. Memory use does not grow with the input.
"""

import argparse
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece
from tqdm import tqdm

from components.command import run_command
from components.errors import UserError
from components.tokenizer import load_tokenizer
from datamodules.documents import FORMATS, STANDARD_INPUT, find_files, read_documents
from datamodules.manifest import TOKENIZER_NAME, FileRecord, Manifest, SplitRecord
from datamodules.shards import Split, TokenIds, write_shards
from datamodules.tokenizer import train_tokenizer

SHARD_TOKENS = 100_000_000
TOKENIZER_TEXT_BYTES = 1 << 25
"""How much text from the start of the training documents trains the tokenizer."""
BATCH_BYTES = 1 << 23
"""Text passed to the encoding threads at once."""
VAL_DOCS = 1000
DOCS_PER_VAL_DOC = 20
"""Unless told, validation takes one document of this many, and at most `VAL_DOCS`."""
VAL_CHOICE_BYTES = 1 << 28
"""How much text from the start is read to know the number of documents, which bounds memory."""

EncodedDocument = tuple[bytes, TokenIds]


def prepare(
    documents: Iterable[bytes],
    folder: Path,
    *,
    source: str,
    val_docs: int | None,
    tokenizer: Path | int,
    num_workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Manifest:
    """Encode documents into the shards of a new data folder.

    Args:
        documents: UTF-8 texts. The first are the validation split, the rest the training split.
        folder: where shards, tokenizer and manifest go; created if missing. After an error it contains none of them.
        source: description of the documents for the manifest.
        val_docs: number of validation documents; 0 for no validation split, None for a twentieth of the documents and
            at most `VAL_DOCS`.
        tokenizer: the SentencePiece model, or the vocabulary size of one to train on the training documents.
        num_workers: encoding threads; None for one per core.
        shard_tokens: ids in every shard except a split's last.

    Raises:
        UserError: the folder already has shards, no document is left for training, or the tokenizer has no bos piece.
            See also `read_documents`, `load_tokenizer` and `train_tokenizer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("fineweb_*.bin")):
        raise UserError(f"{folder} already holds shards: delete them or give another folder")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        scratch = Path(partial)
        documents = iter(documents)
        if val_docs is None:
            documents, val_docs = _count_for_validation(documents)
        val_documents = list(islice(documents, val_docs))
        documents = _at_least_one(documents, source, len(val_documents))
        if isinstance(tokenizer, int):
            head = list(_first_bytes(documents, TOKENIZER_TEXT_BYTES))
            train_tokenizer(head, tokenizer, scratch / TOKENIZER_NAME)
            documents = chain(head, documents)
        else:
            load_tokenizer(tokenizer)
            shutil.copyfile(tokenizer, scratch / TOKENIZER_NAME)
        encoder = Encoder(load_tokenizer(scratch / TOKENIZER_NAME), num_workers)
        val = list(encoder.encode(val_documents))
        val_record, _ = _write_split("val", val, set(), scratch, shard_tokens)
        val_digests = {ids_digest(ids) for _, ids in val}
        train_record, num_left_out = _write_split(
            "train", encoder.encode(documents), val_digests, scratch, shard_tokens
        )
        if train_record.num_documents == 0:
            raise UserError(
                f"{source} has no document to train on that is not one of the {len(val)} for validation too: "
                "give more text or another --val-docs"
            )
        manifest = Manifest(
            source=source,
            vocab_size=encoder.vocab_size,
            tokenizer=FileRecord.of(scratch / TOKENIZER_NAME),
            splits={"val": val_record, "train": train_record},
            left_out_of_train=num_left_out,
        )
        for file in manifest.files():
            (scratch / file.name).replace(folder / file.name)
    manifest.write(folder)
    return manifest


def _count_for_validation(documents: Iterator[bytes]) -> tuple[Iterator[bytes], int]:
    """The same documents, and how many of them are for validation."""
    head = list(islice(_first_bytes(documents, VAL_CHOICE_BYTES), VAL_DOCS * DOCS_PER_VAL_DOC))
    return chain(head, documents), -(-len(head) // DOCS_PER_VAL_DOC)


def _at_least_one(documents: Iterator[bytes], source: str, num_val: int) -> Iterator[bytes]:
    """The same documents, of which there must be one; ``num_val`` went before them into validation."""
    first = next(documents, None)
    if first is not None:
        return chain([first], documents)
    if num_val == 0:
        raise UserError(f"{source} has no text: give a file that has")
    if num_val == 1:
        raise UserError(
            f"{source} is a single document, and validation and training need one each: give more text, or one with "
            "ends of lines to cut it at"
        )
    raise UserError(
        f"{source} has only {num_val} documents, all for validation: give more text or a --val-docs under {num_val}"
    )


def ids_digest(ids: TokenIds) -> bytes:
    """Eight bytes that identify a document by its ids, which are all a network sees."""
    return hashlib.blake2b(ids.tobytes(), digest_size=8).digest()


class Encoder:
    """Encodes text to token ids on several threads; each document starts with a bos."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, num_workers: int | None = None) -> None:
        """Encode with `num_workers` threads; None for one per core.

        Raises:
            UserError: the tokenizer has no bos piece.
        """
        if tokenizer.bos_id() < 0:
            raise UserError("the tokenizer has no bos piece to start documents with: use a tokenizer that has one")
        self.vocab_size = len(tokenizer)
        self._tokenizer = tokenizer
        self._num_workers = num_workers or os.cpu_count() or 1

    def encode(self, documents: Iterable[bytes]) -> Iterator[EncodedDocument]:
        """Yield each document and its ids, shape [document_ids], in order.

        The next batch is read during encoding: SentencePiece's threads do not hold the GIL.
        """
        with (
            ThreadPoolExecutor(max_workers=1) as executor,
            tqdm(unit="B", unit_scale=True, desc="encoding text", leave=False) as progress,
        ):
            encoding: Future[list[npt.NDArray[np.int32]]] | None = None
            batch: list[bytes] = []
            for next_batch in _batches(documents, BATCH_BYTES):
                next_encoding = executor.submit(self._encode_batch, next_batch)
                if encoding:
                    yield from _paired(batch, encoding.result())
                batch, encoding = next_batch, next_encoding
                progress.update(sum(map(len, batch)))
            if encoding:
                yield from _paired(batch, encoding.result())

    def _encode_batch(self, batch: list[bytes]) -> list[npt.NDArray[np.int32]]:
        ids = self._tokenizer.Encode(batch, return_type="numpy", add_bos=True, num_threads=self._num_workers)
        assert isinstance(ids, list)
        return ids


def _paired(batch: list[bytes], ids: list[npt.NDArray[np.int32]]) -> Iterator[EncodedDocument]:
    return ((document, document_ids.astype(np.uint16)) for document, document_ids in zip(batch, ids, strict=True))


def _write_split(
    split: Split, documents: Iterable[EncodedDocument], left_out: set[bytes], folder: Path, shard_tokens: int
) -> tuple[SplitRecord, int]:
    """Write a split's shards, skipping and counting documents whose digest is in `left_out`."""
    text_bytes = num_documents = num_left_out = num_tokens = 0
    digests = hashlib.sha256()

    def kept() -> Iterator[TokenIds]:
        nonlocal text_bytes, num_documents, num_left_out, num_tokens
        for document, ids in documents:
            if left_out and ids_digest(ids) in left_out:
                num_left_out += 1
                continue
            num_documents += 1
            num_tokens += len(ids)
            text_bytes += len(document)
            digests.update(hashlib.sha256(document).digest())
            yield ids

    paths = write_shards(kept(), folder, split, shard_tokens)
    record = SplitRecord(
        num_documents=num_documents,
        num_tokens=num_tokens,
        text_bytes=text_bytes,
        documents_sha256=digests.hexdigest(),
        shards=[FileRecord.of(path) for path in paths],
    )
    return record, num_left_out


def _first_bytes(documents: Iterator[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0 and (document := next(documents, None)) is not None:
        num_bytes -= len(document)
        yield document


def _batches(documents: Iterable[bytes], num_bytes: int) -> Iterator[list[bytes]]:
    documents = iter(documents)
    while batch := list(_first_bytes(documents, num_bytes)):
        yield batch


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.prepare", description="Make a data folder out of your own text."
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FILE",
        help="JSONL, Parquet or plain text, uncompressed or in gzip or zstd, or a folder of such files; - reads "
        "standard input",
    )
    parser.add_argument("--out", type=Path, required=True, help="data folder to make")
    parser.add_argument(
        "--format", choices=FORMATS, help="format of every input (default: by the file name; jsonl for standard input)"
    )
    tokenizer = parser.add_mutually_exclusive_group()
    parser.set_defaults(tokenizer=1024)
    tokenizer.add_argument("--tokenizer", type=Path, default=argparse.SUPPRESS, help="SentencePiece model to use")
    tokenizer.add_argument(
        "--vocab-size",
        dest="tokenizer",
        type=int,
        default=argparse.SUPPRESS,
        metavar="PIECES",
        help="size of the vocabulary of a tokenizer to train on the training documents (default: 1024)",
    )
    parser.add_argument(
        "--val-docs",
        type=_not_negative,
        help="number of documents, from the first on, for validation "
        f"(default: a twentieth of them, at most {VAL_DOCS:,})",
    )
    parser.add_argument("--workers", type=int, help="threads that encode (default: one per core)")
    args = parser.parse_args()
    sources = list(chain.from_iterable(_sources(given) for given in args.inputs))
    manifest = prepare(
        chain.from_iterable(read_documents(source, args.format) for source in sources),
        args.out,
        source=" ".join("standard input" if source == STANDARD_INPUT else source for source in args.inputs),
        val_docs=args.val_docs,
        tokenizer=args.tokenizer,
        num_workers=args.workers,
    )
    if args.val_docs is None:
        print(f"validation is a twentieth of the documents, at most {VAL_DOCS:,}: give --val-docs for another number")
    print(manifest.report(args.out))


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def _sources(given: str) -> list[str]:
    """The files to read for one argument, and a line about those of a folder."""
    if not Path(given).is_dir():
        return [given]
    files = find_files(Path(given))
    print(f"{given}: {len(files):,} files of text, from {files[0]} to {files[-1]}")
    return [str(file) for file in files]


if __name__ == "__main__":
    run_command(main)
