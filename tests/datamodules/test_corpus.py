import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from datamodules import corpus
from datamodules.corpus import _docstrings, _split, build_corpus, standard_library
from datamodules.manifest import Manifest
from datamodules.shards import find_shards, open_shard


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build_corpus(folder)
    return folder


def documents_of(folder: Path, split: str) -> list[str]:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = np.concatenate([open_shard(path) for path in find_shards(folder, split)])  # type: ignore[arg-type]
    starts = np.flatnonzero(ids == tokenizer.bos_id())
    return [tokenizer.Decode(document.tolist()) for document in np.split(ids, starts)[1:]]


def test_layout_and_sizes(built: Path) -> None:
    assert sorted(path.name for path in built.iterdir()) == [
        "fineweb_train_000000.bin",
        "fineweb_val_000000.bin",
        "manifest.json",
        "tokenizer.model",
    ]
    manifest = Manifest.read(built)
    assert manifest is not None
    assert manifest.vocab_size == 1024
    assert 60_000 <= manifest.splits["val"].text_bytes <= 64_000
    assert manifest.splits["train"].text_bytes > 1_500_000


def test_no_document_is_in_both_splits_or_twice(built: Path) -> None:
    val, train = documents_of(built, "val"), documents_of(built, "train")
    assert len(val) > 10
    assert not set(val) & set(train)
    assert len(set(val)) == len(val)
    assert len(set(train)) == len(train)


def test_is_prose_of_this_python(built: Path) -> None:
    text = "\n".join(documents_of(built, "train") + documents_of(built, "val"))
    assert 'The "assert" statement' in text
    assert "Interface summary: import copy" in text  # a docstring
    assert "def deepcopy(x, memo=None" not in text  # its module's source


def test_no_document_is_a_line_or_two() -> None:
    assert min(map(len, standard_library())) >= 200


def test_a_documents_split_does_not_depend_on_those_for_training() -> None:
    val, train = _split({bytes([i]) * (100 * i) for i in range(1, 100)})
    assert 60_000 < sum(map(len, val)) <= 64_000
    for kept in (set(), set(train[::2]), set(train[1::3])):
        assert _split({*val, *kept}) == (val, [document for document in train if document in kept])


def few_documents() -> Iterator[str]:
    """Of all of them enough for a vocabulary of 1,024 pieces."""
    for document, _ in zip(standard_library(), range(60), strict=False):
        yield document


def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        build_corpus(tmp_path / name, few_documents)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def no_documents() -> Iterator[str]:
    raise AssertionError("read again")


def test_an_up_to_date_corpus_is_left_as_it_is(tmp_path: Path) -> None:
    manifest = build_corpus(tmp_path, few_documents)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert build_corpus(tmp_path, no_documents) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def damage_shard(folder: Path) -> None:
    path = folder / "fineweb_train_000000.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def make_stale(folder: Path) -> None:
    fields = json.loads((folder / "manifest.json").read_text())
    fields["source"] = "Python 3.10.0 standard library, fingerprint 0"
    (folder / "manifest.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "spoil",
    [
        damage_shard,
        make_stale,
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "tokenizer.model").unlink(),
        lambda folder: os.truncate(folder / "fineweb_val_000000.bin", 0),
    ],
    ids=["damaged shard", "stale", "no manifest", "bad manifest", "no tokenizer", "empty shard"],
)
def test_a_stale_or_damaged_corpus_is_rebuilt(tmp_path: Path, spoil: object) -> None:
    build_corpus(tmp_path, few_documents)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert callable(spoil)
    spoil(tmp_path)
    build_corpus(tmp_path, few_documents)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_fingerprint_follows_python_and_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fingerprint = corpus._fingerprint()
    assert corpus._fingerprint() == fingerprint
    monkeypatch.setattr(corpus.sys, "version", "3.99.0")
    assert corpus._fingerprint() != fingerprint
    monkeypatch.undo()
    code = tmp_path / "datamodules"
    shutil.copytree(Path(corpus.__file__).parent, code)
    monkeypatch.setattr(corpus, "__file__", str(code / "corpus.py"))
    assert corpus._fingerprint() == fingerprint
    with (code / "prepare.py").open("a") as file:
        file.write("BATCH_BYTES = 1\n")
    assert corpus._fingerprint() != fingerprint


MODULE = '''"""About the module."""
import os
\f
class Box:
    """About the box.

    More.
    """

    async def open(self):
        "About opening."
        return "not a docstring"
'''


def test_docstrings_of_a_module_in_order() -> None:
    assert _docstrings(MODULE) == "About the module.\n\nAbout the box.\n\nMore.\n\nAbout opening."
