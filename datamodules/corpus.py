"""Build the demo corpus from the Python installation itself: `python -m datamodules.corpus --out FOLDER`.

The text is the standard library's documentation topics and, for each module, its docstrings and the rest of its
source. No module is imported. A complete folder that this code made on this Python is kept.
"""

import argparse
import ast
import hashlib
import platform
import random
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics

import sentencepiece

from components.command import run_command
from datamodules.manifest import MANIFEST_NAME, Manifest
from datamodules.prepare import prepare

VOCAB_SIZE = 1024
VAL_BYTES = 200_000
SEED = 1337

_NOT_PROSE_OR_PLAIN_CODE = {"test", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "ensurepip"}
"""Excluded: tests (larger than everything else), tables, frozen grammars, toys."""

_CODE = ("corpus", "documents", "manifest", "prepare", "shards", "tokenizer")


def build_corpus(folder: Path, documents: Callable[[], Iterator[str]] | None = None) -> Manifest:
    """Build the demo's data folder unless it is already complete and up to date.

    The validation split is a random sample of documents with a fixed seed, `VAL_BYTES` of text in total. No document
    occurs twice.

    Args:
        folder: where shards, tokenizer and manifest go.
        documents: the texts; defaults to this Python's standard library.
    """
    source = f"Python {platform.python_version()} standard library, fingerprint {_fingerprint()}"
    manifest = Manifest.read(folder)
    if manifest and manifest.source == source and not manifest.is_damaged(folder):
        return manifest
    for stale in (folder / MANIFEST_NAME, *folder.glob("fineweb_*.bin")):
        stale.unlink(missing_ok=True)
    val_documents, train_documents = _split(sorted({text.encode() for text in (documents or standard_library)()}))
    return prepare(
        chain(val_documents, train_documents),
        folder,
        source=source,
        val_docs=len(val_documents),
        tokenizer=VOCAB_SIZE,
    )


def _fingerprint() -> str:
    """A digest of everything that determines the bytes of the corpus."""
    code = (Path(__file__).with_name(f"{name}.py").read_bytes() for name in _CODE)
    parts = [sys.version.encode(), sentencepiece.__version__.encode(), *code]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _split(documents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    random.Random(SEED).shuffle(documents)
    val, train, num_val_bytes = [], [], 0
    for document in documents:
        if num_val_bytes + len(document) <= VAL_BYTES:
            val.append(document)
            num_val_bytes += len(document)
        else:
            train.append(document)
    return val, train


def standard_library() -> Iterator[str]:
    """Yield each documentation topic, then each module's docstrings and the rest of its source."""
    yield from topics.values()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        package = path.relative_to(root).parts[0].removesuffix(".py")
        if package in sys.stdlib_module_names and package not in _NOT_PROSE_OR_PLAIN_CODE:
            with tokenize.open(path) as file:
                yield from filter(None, _docstrings_and_code(file.read()))


def _docstrings_and_code(source: str) -> tuple[str, str]:
    """Split a module's source into two parts that share no text."""
    docstrings = []
    docstring_lines: set[int] = set()
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
        tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        docstring = ast.get_docstring(node)
        first = node.body[0] if node.body else None
        if docstring and isinstance(first, ast.Expr) and first.end_lineno:
            docstrings.append(docstring)
            docstring_lines.update(range(first.lineno, first.end_lineno + 1))
    # Count lines as the parser does: `splitlines` would also split at form feeds.
    lines = enumerate(source.split("\n"), start=1)
    return "\n\n".join(docstrings), "\n".join(line for number, line in lines if number not in docstring_lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.corpus", description="Make the demo's data folder out of Python's standard library."
    )
    parser.add_argument("--out", type=Path, required=True, help="data folder to make, or to keep if it is up to date")
    args = parser.parse_args()
    print(build_corpus(args.out).report(args.out))


if __name__ == "__main__":
    run_command(main)
