"""The command: ``python -m records.audit FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from components.errors import UserError
from components.files import write_whole
from datamodules.shards import find_shards
from records.audit import report
from records.audit.case import Case
from records.audit.checks import audit
from records.audit.contained import Box
from records.audit.folder import read_folder
from records.audit.verdicts import State, printable
from records.baseline import baseline_losses


def run(arguments: Sequence[str]) -> None:
    """Audit the folder given on the command line and exit with 1 if a check failed.

    Raises:
        UserError: the folder, the data or the baseline cannot be read, or a report cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m records.audit",
        description="What a reviewer checks by hand, a line each: pass, FAIL, look here or could not check, on whose "
        "word, and why. The folder may be another project's. Its script runs contained as well as this machine can, "
        "which is said first.",
    )
    parser.add_argument("folder", type=Path, help="the submission")
    parser.add_argument("--data", type=Path, help="folder of validation shards, to score the artifacts on again")
    parser.add_argument("--tokenizer", type=Path, help="their SentencePiece model (default: DATA/tokenizer.model)")
    parser.add_argument(
        "--baseline", nargs="+", default=[], help="what was to be beaten, where the submission does not say it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts here too, for tools")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write them here too, as a page")
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        raise UserError(f"There is no folder {args.folder}; give the submission's folder.")
    tokenizer = args.tokenizer or (args.data / "tokenizer.model" if args.data is not None else None)
    if tokenizer is not None and not tokenizer.is_file():
        raise UserError(f"There is no tokenizer {tokenizer}; give --tokenizer the data's SentencePiece model.")
    if args.data is not None:
        find_shards(args.data, "val")
    box = Box.of_this_machine()
    print(box.sentence(), file=sys.stderr, flush=True)
    case = Case(read_folder(args.folder), box, args.data, tokenizer, tuple(baseline_losses(args.baseline)))
    verdicts = audit(case, lambda name: print(f"... {name}", file=sys.stderr, flush=True))
    folder = printable(args.folder.resolve().name)
    print(report.as_text(folder, box.sentence(), verdicts), end="", flush=True)
    for path, write in ((args.json, report.as_json), (args.html, report.as_page)):
        if path is not None:
            write_whole(path, write(folder, box.sentence(), verdicts).encode())
    if any(verdict.state == State.FAIL for verdict in verdicts):
        sys.exit(1)
