"""Build the demo corpus from the Python installation itself: `python -m datamodules.corpus --out FOLDER`.

The text is prose: the standard library's documentation topics and the docstrings of each of its modules. No module is
imported. A complete folder that this code made on this Python is kept.
"""

import argparse
import ast
import hashlib
import platform
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
VAL_BYTES = 64_000
MIN_CHARACTERS = 200
"""A document of the standard library is at least this long; shorter ones are a line or two and no prose."""

_NOT_PROSE = {"test", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "ensurepip"}
"""Excluded packages: tests, tables, frozen grammars, toys."""

_CODE = ("corpus", "documents", "manifest", "prepare", "shards", "tokenizer")


def build_corpus(folder: Path, documents: Callable[[], Iterator[str]] | None = None) -> Manifest:
    """Build the demo's data folder unless it is already complete and up to date.

    Documents are ordered by a hash of their text, so that their order is random but always the same. The first
    `VAL_BYTES` of text are the validation split; a document too long for what is left goes to training. No document
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
    val_documents, train_documents = _split({text.encode() for text in (documents or standard_library)()})
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


def _split(documents: set[bytes]) -> tuple[list[bytes], list[bytes]]:
    val, train, num_val_bytes = [], [], 0
    for document in sorted(documents, key=lambda document: hashlib.sha256(document).digest()):
        if num_val_bytes + len(document) <= VAL_BYTES:
            val.append(document)
            num_val_bytes += len(document)
        else:
            train.append(document)
    return val, train


def standard_library() -> Iterator[str]:
    """Yield each documentation topic, then the docstrings of each module, in documents of `MIN_CHARACTERS` or more."""
    return (text for text in chain(topics.values(), _modules()) if len(text) >= MIN_CHARACTERS)


def _modules() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        package = path.relative_to(root).parts[0].removesuffix(".py")
        if package in sys.stdlib_module_names and package not in _NOT_PROSE:
            with tokenize.open(path) as file:
                yield _docstrings(file.read())


def _docstrings(source: str) -> str:
    """The docstrings of a module, its classes and its functions, in the order of its lines."""
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
        tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.corpus",
        description="Make the demo's data folder out of the documentation of Python's standard library.",
    )
    parser.add_argument("--out", type=Path, required=True, help="data folder to make, or to keep if it is up to date")
    args = parser.parse_args()
    print(build_corpus(args.out).report(args.out))


if __name__ == "__main__":
    run_command(main)
