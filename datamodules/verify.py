"""Check a data folder before paying for a run: `python -m datamodules.verify FOLDER --tokenizer FILE`.

Prints the folder's contents and every problem found. Exits with 1 if a run on it could not be trusted.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
from tqdm import tqdm

from components.byte_counts import token_byte_table
from components.command import run_command
from components.errors import UserError
from components.tokenizer import load_tokenizer
from datamodules.manifest import TOKENIZER_NAME, Manifest
from datamodules.prepare import ids_digest
from datamodules.shards import Split, TokenIds, find_shards, open_shard, shard_name
from datamodules.tokenizer import check_vocabulary

SPLITS: tuple[Split, ...] = get_args(Split)
DECODE_BATCH_DOCUMENTS = 1024


@dataclass
class SplitReport:
    """The contents of one split."""

    split: Split
    num_shards: int
    num_tokens: int
    num_documents: int
    num_duplicates: int
    """Documents that repeat an earlier one in the same split."""
    digests: npt.NDArray[np.bytes_]
    """One per distinct document, sorted."""
    text_bytes: int | None = None
    """UTF-8 bytes of the decoded text; counted only for validation."""


def verify_folder(folder: Path, tokenizer_path: Path) -> tuple[list[SplitReport], list[str]]:
    """Check a data folder's shards, tokenizer and manifest (if any) against each other.

    Returns:
        Each split's contents in readable shards, and one sentence per problem. If there are none, a run on the folder
        can be trusted.

    Raises:
        UserError: see `load_tokenizer`.
    """
    problems: list[str] = []
    tokenizer = load_tokenizer(tokenizer_path)
    train, val = (
        _read_split(folder, split, list(_readable_shards(folder, split, problems)), tokenizer, problems)
        for split in SPLITS
    )
    _check_leak(train, val, problems)
    _check_manifest(folder, [train, val], problems)
    return [train, val], problems


def _readable_shards(folder: Path, split: Split, problems: list[str]) -> Iterator[tuple[Path, TokenIds]]:
    try:
        paths = find_shards(folder, split)
    except UserError as error:
        problems.append(str(error))
        return
    expected = [shard_name(split, index) for index in range(len(paths))]
    if missing := sorted(set(expected) - {path.name for path in paths}):
        problems.append(
            f"the {split} shards of {folder} have a gap, {missing[0]} is missing: download or prepare them again"
        )
    for path in paths:
        try:
            yield path, open_shard(path)
        except UserError as error:
            problems.append(str(error))


def _read_split(
    folder: Path,
    split: Split,
    shards: list[tuple[Path, TokenIds]],
    tokenizer: sentencepiece.SentencePieceProcessor,
    problems: list[str],
) -> SplitReport:
    in_vocabulary = []
    for path, ids in shards:
        if (largest := int(ids.max())) < len(tokenizer):
            in_vocabulary.append(ids)
        else:
            problems.append(
                f"shard {path} has token id {largest}, outside the tokenizer's vocabulary of {len(tokenizer)}: "
                "give the tokenizer that it was made with"
            )
    if split == "val" and in_vocabulary:
        try:
            check_vocabulary(np.concatenate(in_vocabulary), len(tokenizer), folder)
        except UserError as error:
            problems.append(str(error))
    num_tokens = sum(len(ids) for _, ids in shards)
    digests: list[bytes] = []
    checker = _ByteCountChecker(tokenizer) if split == "val" else None
    with tqdm(total=num_tokens, unit="tok", unit_scale=True, desc=f"reading {split}", leave=False) as progress:
        for document in _documents(in_vocabulary, tokenizer.bos_id()):
            digests.append(ids_digest(document))
            if checker:
                checker.add(document)
            progress.update(len(document))
    unique = np.unique(np.array(digests, dtype="S8"))
    report = SplitReport(split, len(shards), num_tokens, len(digests), len(digests) - len(unique), unique)
    if checker:
        report.text_bytes = checker.finish(problems)
    return report


def _documents(shards: list[TokenIds], bos_id: int) -> Iterator[TokenIds]:
    """Yield documents with their bos; one may continue in the next shard."""
    begun: list[TokenIds] = []
    for ids in shards:
        pieces = np.split(ids, np.flatnonzero(ids == bos_id))
        for index, piece in enumerate(pieces):
            if index > 0 and begun:
                yield np.concatenate(begun)
                begun = []
            if len(piece):
                begun.append(piece)
    if begun:
        yield np.concatenate(begun)


class _ByteCountChecker:
    """Compares the byte counts used for bits per byte with the text that the tokenizer decodes."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
        self._tokenizer = tokenizer
        self._table = token_byte_table(tokenizer)
        self._waiting: list[TokenIds] = []
        self._counted_bytes = 0
        self._decoded_bytes = 0

    def add(self, document: TokenIds) -> None:
        self._waiting.append(document)
        if len(self._waiting) > DECODE_BATCH_DOCUMENTS:
            self._count(self._waiting[:-1])
            self._waiting = self._waiting[-1:]

    def _count(self, documents: list[TokenIds]) -> None:
        for document in documents:
            ids = torch.from_numpy(document.astype(np.int64))
            self._counted_bytes += int(self._table.target_bytes(ids[:-1], ids[1:]).sum())
        texts = self._tokenizer.Decode([document[1:].tolist() for document in documents])  # the first is not a target
        self._decoded_bytes += sum(len(text.encode()) for text in texts)

    def finish(self, problems: list[str]) -> int:
        if self._waiting:
            # The split may end inside a document, or even inside a character, which cannot be decoded.
            last = self._waiting[-1]
            while len(last) and self._tokenizer.IsByte(int(last[-1])):
                last = last[:-1]
            self._count([*self._waiting[:-1], last])
        if self._counted_bytes != self._decoded_bytes:
            problems.append(
                f"the validation targets count {self._counted_bytes} bytes where their decoded text has "
                f"{self._decoded_bytes}, so bits per byte would be wrong: give the tokenizer that made the shards"
            )
        return self._decoded_bytes


def _check_leak(train: SplitReport, val: SplitReport, problems: list[str]) -> None:
    num_leaked = len(np.intersect1d(train.digests, val.digests, assume_unique=True))
    if num_leaked:
        problems.append(
            f"{num_leaked} of {val.num_documents} validation documents are in the train shards too: "
            "prepare the folder again with `python -m datamodules.prepare`, which leaves them out"
        )


def _check_manifest(folder: Path, reports: list[SplitReport], problems: list[str]) -> None:
    manifest = Manifest.read(folder)
    if not manifest:
        return
    remedy = "prepare the folder again"
    if manifest.is_damaged(folder):
        problems.append(f"a file of {folder} is missing or has other bytes than its manifest.json says: {remedy}")
    for report in reports:
        expected = manifest.splits[report.split]
        for what, found, wanted in (
            ("shards", report.num_shards, len(expected.shards)),
            ("tokens", report.num_tokens, expected.num_tokens),
            ("documents", report.num_documents, expected.num_documents),
        ):
            if found != wanted:
                problems.append(
                    f"{folder} has {found} {report.split} {what} where its manifest.json says {wanted}: {remedy}"
                )


def report_table(reports: list[SplitReport]) -> str:
    """Format one line per split."""
    lines = [f"{'split':<6} {'shards':>6} {'tokens':>15} {'documents':>11} {'duplicates':>10} {'bytes per token':>15}"]
    for report in reports:
        num_targets = max(report.num_tokens - 1, 1)
        bytes_per_token = "" if report.text_bytes is None else f"{report.text_bytes / num_targets:.4f}"
        lines.append(
            f"{report.split:<6} {report.num_shards:>6} {report.num_tokens:>15,} {report.num_documents:>11,} "
            f"{report.num_duplicates:>10,} {bytes_per_token:>15}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.verify", description="Check a data folder; exits with 1 if it has a problem."
    )
    parser.add_argument("folder", type=Path, help="folder with fineweb_train_*.bin and fineweb_val_*.bin")
    parser.add_argument(
        "--tokenizer", type=Path, help=f"SentencePiece model of the shards (default: FOLDER/{TOKENIZER_NAME})"
    )
    args = parser.parse_args()
    reports, problems = verify_folder(args.folder, args.tokenizer or args.folder / TOKENIZER_NAME)
    print(report_table(reports))
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print("no problems found")


if __name__ == "__main__":
    run_command(main)
