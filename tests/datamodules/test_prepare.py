import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from components.errors import UserError
from datamodules import prepare as prepare_module
from datamodules.documents import read_documents
from datamodules.manifest import FileRecord, Manifest
from datamodules.prepare import prepare
from datamodules.shards import find_shards, open_shard
from datamodules.verify import verify_folder
from tests.support import ROOT, SAMPLE, needs_sample, run

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards boil 12 kettles of tea"
WORDS = TEXT.split()
DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(20 + i)).encode() for i in range(30)]
SETTINGS = {"source": "words", "val_docs": 5, "tokenizer": 300}


def tokens(folder: Path, split: str) -> list[int]:
    return np.concatenate([open_shard(path) for path in find_shards(folder, split)]).tolist()  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@needs_sample
@pytest.mark.parametrize(("size", "num_tokens", "shard_tokens"), [(1024, 628_457, 314_228), (8192, 420_724, 210_362)])
def test_reproduces_the_published_tokens(tmp_path: Path, size: int, num_tokens: int, shard_tokens: int) -> None:
    documents = read_documents(str(SAMPLE / "docs.jsonl"))
    manifest = prepare(
        documents,
        tmp_path,
        source="sample",
        val_docs=0,
        tokenizer=SAMPLE / f"tokenizers/fineweb_{size}_bpe.model",
        shard_tokens=shard_tokens,
    )
    name = "fineweb_train_000000.bin"
    assert (tmp_path / name).read_bytes() == (SAMPLE / f"datasets/fineweb10B_sp{size}" / name).read_bytes()
    assert tokens(tmp_path, "train") == tokens(SAMPLE / f"datasets/fineweb10B_sp{size}", "train")
    train = manifest.splits["train"]
    assert (train.num_documents, train.num_tokens, train.text_bytes) == (200, num_tokens, 1_489_515)
    assert manifest.splits["val"].shards == []


@needs_sample
def test_command_trains_a_vocabulary_of_8192(tmp_path: Path) -> None:
    command = ("-m", "datamodules.prepare", str(SAMPLE / "docs.jsonl"), "--out", str(tmp_path), "--val-docs", "60")
    done = run(*command, "--vocab-size", "8192")
    assert done.returncode == 0, done.stderr
    assert f"--data.tokenizer_path {tmp_path}/tokenizer.model" in done.stdout
    (_, val), problems = verify_folder(tmp_path, tmp_path / "tokenizer.model")
    assert problems == []
    assert val.num_documents == 60
    assert max(tokens(tmp_path, "train")) == 8191


def test_every_document_is_a_bos_and_its_pieces_and_the_first_are_validation(tmp_path: Path) -> None:
    prepare(DOCUMENTS, tmp_path, **SETTINGS)  # type: ignore[arg-type]
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for split, documents in (("val", DOCUMENTS[:5]), ("train", DOCUMENTS[5:])):
        expected = [token_id for document in documents for token_id in (1, *tokenizer.Encode(document.decode()))]
        assert tokens(tmp_path, split) == expected


@pytest.mark.parametrize(("num_docs", "num_val"), [(2, 1), (20, 1), (21, 2), (60, 3), (61, 3)])
def test_validation_takes_a_twentieth_and_at_most_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_docs: int, num_val: int
) -> None:
    monkeypatch.setattr(prepare_module, "VAL_DOCS", 3)
    documents = [b"%s %d" % (TEXT.encode(), i) for i in range(num_docs)]
    made = prepare(documents, tmp_path, source="words", val_docs=None, tokenizer=300)
    assert made.splits["val"].num_documents == num_val
    assert made.splits["train"].num_documents == num_docs - num_val


def test_choosing_the_number_reads_a_bounded_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "VAL_CHOICE_BYTES", 40 * len(DOCUMENTS[0]))
    made = prepare([DOCUMENTS[0], *(DOCUMENTS[1:] * 9)], tmp_path, source="words", val_docs=None, tokenizer=300)
    assert made.splits["val"].num_documents == 2  # of the first 28 documents, not of all 262


def test_shards_are_cut_at_their_size_wherever_batches_and_documents_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "BATCH_BYTES", 150)
    prepare(DOCUMENTS, tmp_path / "cut", **SETTINGS, shard_tokens=100)  # type: ignore[arg-type]
    prepare(DOCUMENTS, tmp_path / "whole", **SETTINGS)  # type: ignore[arg-type]
    sizes = [len(open_shard(path)) for path in find_shards(tmp_path / "cut", "train")]
    assert len(sizes) > 3
    assert set(sizes[:-1]) == {100}
    assert 0 < sizes[-1] <= 100
    assert tokens(tmp_path / "cut", "train") == tokens(tmp_path / "whole", "train")


def test_a_shard_that_is_just_full_is_not_followed_by_an_empty_one(tmp_path: Path) -> None:
    whole = prepare(DOCUMENTS, tmp_path / "whole", **SETTINGS)  # type: ignore[arg-type]
    size = whole.splits["train"].num_tokens
    assert len(prepare(DOCUMENTS, tmp_path / "cut", **SETTINGS, shard_tokens=size).splits["train"].shards) == 1  # type: ignore[arg-type]


def test_the_bytes_do_not_depend_on_workers_or_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(DOCUMENTS, tmp_path / "one", **SETTINGS, num_workers=1)  # type: ignore[arg-type]
    monkeypatch.setattr(prepare_module, "BATCH_BYTES", 400)
    prepare(DOCUMENTS, tmp_path / "three", **SETTINGS, num_workers=3)  # type: ignore[arg-type]
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_training_documents_that_stand_in_validation_are_left_out(tmp_path: Path) -> None:
    reflowed = DOCUMENTS[4].replace(b" ", b"  ")  # the same ids
    leaking = [*DOCUMENTS, DOCUMENTS[0], DOCUMENTS[7], reflowed]
    manifest = prepare(leaking, tmp_path / "leaking", **SETTINGS)  # type: ignore[arg-type]
    assert manifest.left_out_of_train == 2
    assert manifest.splits["train"].num_documents == 26
    assert "left out of train, because val has them too: 2 documents" in manifest.report(tmp_path)


def test_the_tokenizer_learns_from_the_start_of_the_training_documents_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "TOKENIZER_TEXT_BYTES", sum(map(len, DOCUMENTS[5:])))
    strange = [b"zyzzyva " * 50] * 5
    plain = prepare(DOCUMENTS, tmp_path / "plain", **SETTINGS)  # type: ignore[arg-type]
    other = prepare([*strange, *DOCUMENTS[5:], *strange], tmp_path / "other", **SETTINGS)  # type: ignore[arg-type]
    assert plain.tokenizer == other.tokenizer


def test_the_manifest_tells_what_the_folder_holds(tmp_path: Path) -> None:
    written = prepare(DOCUMENTS, tmp_path, **SETTINGS)  # type: ignore[arg-type]
    manifest = Manifest.read(tmp_path)
    assert manifest == written
    assert {file.name for file in manifest.files()} | {"manifest.json"} == set(contents(tmp_path))
    assert all(FileRecord.of(tmp_path / file.name) == file for file in manifest.files())
    assert manifest.splits["train"].text_bytes == sum(map(len, DOCUMENTS[5:]))
    assert manifest.splits["train"].num_tokens == len(tokens(tmp_path, "train"))
    assert (manifest.source, manifest.vocab_size) == ("words", 300)


def test_document_hashes_see_where_documents_end(tmp_path: Path) -> None:
    first = prepare([b"", b"ab", b"c", *DOCUMENTS], tmp_path / "1", **SETTINGS)  # type: ignore[arg-type]
    second = prepare([b"", b"a", b"bc", *DOCUMENTS], tmp_path / "2", **SETTINGS)  # type: ignore[arg-type]
    assert first.splits["val"].documents_sha256 != second.splits["val"].documents_sha256
    assert first.splits["train"].documents_sha256 == second.splits["train"].documents_sha256


@pytest.mark.parametrize(
    ("documents", "settings", "message"),
    [
        (
            DOCUMENTS,
            {"tokenizer": 5000},
            r"yields only (\d+) of the 5000 pieces of the vocabulary: give more text or --vocab-size \1$",
        ),
        (DOCUMENTS, {"tokenizer": 260}, "a vocabulary cannot have 260 pieces: choose --vocab-size from 261"),
        (DOCUMENTS, {"tokenizer": 65537}, "a vocabulary cannot have 65537 pieces: .* to 65536"),
        (
            [b" ".join(f"{chr(0x4E00 + i)}".encode() for i in range(500))] * 6,
            {},
            "no room .* --vocab-size [78]\\d\\d or",
        ),
        (DOCUMENTS[:5], {}, "words has only 5 documents, all for validation: .* a --val-docs under 5"),
        (DOCUMENTS[:1], {"val_docs": None}, "words is a single document, and validation and training need one each"),
        ([b" ".join(DOCUMENTS)] * 9, {}, "no document to train on that is not one of the 5 for validation too"),
        ([], {"val_docs": 0}, "words has no text"),
        (DOCUMENTS, {"tokenizer": Path("gone.model")}, r"no tokenizer at gone\.model"),
    ],
)
def test_what_a_user_can_mend_leaves_an_empty_folder(
    tmp_path: Path, documents: list[bytes], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(documents, tmp_path, **{**SETTINGS, **settings})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_shards_that_stand_there_are_kept(tmp_path: Path) -> None:
    prepare(DOCUMENTS, tmp_path, **SETTINGS)  # type: ignore[arg-type]
    before = contents(tmp_path)
    with pytest.raises(UserError, match="already holds shards"):
        prepare(DOCUMENTS, tmp_path, **SETTINGS)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


def command(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "datamodules.prepare", *map(str, arguments)],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_command_from_standard_input_and_from_a_file(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": document.decode()}) + "\n" for document in DOCUMENTS).encode()
    (tmp_path / "docs.jsonl").write_bytes(lines)
    settings = ("--vocab-size", 300, "--val-docs", 5)
    result = command("-", "--out", tmp_path / "stdin", *settings, stdin=lines)
    assert result.returncode == 0, result.stderr
    expected = f"--data.path {tmp_path}/stdin --data.tokenizer_path {tmp_path}/stdin/tokenizer.model"
    assert expected in result.stdout.decode()
    result = command(tmp_path / "docs.jsonl", "--out", tmp_path / "file", *settings)
    assert result.returncode == 0, result.stderr
    first, second = contents(tmp_path / "stdin"), contents(tmp_path / "file")
    assert json.loads(first.pop("manifest.json"))["source"] == "standard input"
    assert json.loads(second.pop("manifest.json"))["source"] == str(tmp_path / "docs.jsonl")
    assert first == second


def test_command_reports_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    result = command("-", "--out", tmp_path / "out", stdin=b'{"text": "a"}\n{"txt": "b"}\n')
    assert result.returncode == 1
    assert result.stderr.startswith(b"error: line 2 of - is not a JSON object")
    assert result.stderr.count(b"\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_command_refuses_a_negative_number_of_documents(tmp_path: Path) -> None:
    result = command("-", "--out", tmp_path / "out", "--val-docs", -1)
    assert result.returncode == 2
    assert b"argument --val-docs: -1 is less than 0" in result.stderr


def test_command_trains_a_tokenizer_of_1024_pieces_unless_told(tmp_path: Path) -> None:
    letters = np.random.default_rng(0).integers(ord("a"), ord("z"), (3000, 7), dtype=np.uint8)
    (tmp_path / "words.txt").write_bytes(b" ".join(bytes(word) for word in letters))
    result = command(tmp_path / "words.txt", "--out", tmp_path / "out", "--val-docs", 0)
    assert result.returncode == 0, result.stderr
    assert b"--data.tokenizer_path" in result.stdout


def test_command_makes_both_splits_of_one_book_or_of_a_folder(tmp_path: Path) -> None:
    chapters = [f"Chapter {i}\n\n" + "\n\n".join([TEXT, str(i) * 40] * 70) + "\n\n" for i in range(25)]
    (tmp_path / "book.txt").write_text("".join(chapters))
    (tmp_path / "notes").mkdir()
    for i, chapter in enumerate(chapters):
        (tmp_path / "notes" / f"{i:02}.md").write_text(chapter)
    for name, num_val in (("book.txt", 2), ("notes", 3)):
        out = tmp_path / f"data of {name}"
        result = command(tmp_path / name, "--out", out, "--vocab-size", 300)
        assert result.returncode == 0, result.stderr
        made = Manifest.read(out)
        assert made is not None
        assert made.splits["val"].num_documents == num_val
        assert sum(split.text_bytes for split in made.splits.values()) == len("".join(chapters))
        assert b"a twentieth of the documents" in result.stdout
    assert f"25 files of text, from {tmp_path}/notes/00.md to {tmp_path}/notes/24.md" in result.stdout.decode()
