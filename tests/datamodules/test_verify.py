import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from components.errors import UserError
from components.tokenizer import load_tokenizer
from datamodules import verify
from datamodules.prepare import prepare
from datamodules.shards import find_shards, open_shard, write_shard
from datamodules.verify import report_table, verify_folder
from tests.support import ROOT, SAMPLE, needs_sample

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards boil 12 kettles of tea"
WORDS = TEXT.split()
DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(20 + i)).encode() for i in range(30)]
DOCUMENTS[3] += " and a \u2603".encode()  # not in the training text: three byte-fallback pieces


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare(DOCUMENTS, folder, source="words", val_docs=5, tokenizer=300, shard_tokens=250)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def problems_of(folder: Path) -> list[str]:
    return verify_folder(folder, folder / "tokenizer.model")[1]


def without_manifest(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


def test_a_prepared_folder_is_trusted(folder: Path) -> None:
    (train, val), problems = verify_folder(folder, folder / "tokenizer.model")
    assert problems == []
    assert (train.num_documents, val.num_documents, train.num_duplicates) == (25, 5, 0)
    assert train.num_shards > 3
    assert val.text_bytes == sum(map(len, DOCUMENTS[:5]))


@needs_sample
def test_the_published_sample_is_trusted() -> None:
    (train, val), problems = verify_folder(
        SAMPLE / "datasets/fineweb10B_sp1024", SAMPLE / "tokenizers/fineweb_1024_bpe.model"
    )
    assert problems == []
    assert (train.num_tokens, train.num_documents) == (628_457, 200)
    assert (val.num_tokens, val.num_documents, val.text_bytes) == (131_072, 109, 315_257)


@needs_sample
def test_the_larger_vocabulary_counts_the_same_text() -> None:
    folder, model = SAMPLE / "datasets/fineweb10B_sp8192", SAMPLE / "tokenizers/fineweb_8192_bpe.model"
    (train, val), problems = verify_folder(folder, model)
    assert problems == []
    assert (train.num_tokens, train.num_documents) == (420_724, 200)
    assert (val.num_tokens, val.num_documents, val.text_bytes) == (85_648, 108, 313_038)
    ids = torch.from_numpy(open_shard(find_shards(folder, "val")[0]).astype(np.int64))
    table = verify.token_byte_table(load_tokenizer(model))
    assert int(table.target_bytes(ids[:-1], ids[1:]).sum()) == 313_038


@needs_sample
@pytest.mark.parametrize(
    ("shards", "tokenizer", "messages"),
    [
        (
            8192,
            1024,
            [r"fineweb_(train|val)_00000\d\.bin has token id 8191, outside the tokenizer's vocabulary of 1024"] * 3,
        ),
        (1024, 8192, [r"sp1024 use no id above 1023 of a vocabulary of 8192, so that another tokenizer made them"]),
    ],
)
def test_the_tokenizer_of_another_vocabulary(shards: int, tokenizer: int, messages: list[str]) -> None:
    _, problems = verify_folder(
        SAMPLE / f"datasets/fineweb10B_sp{shards}", SAMPLE / f"tokenizers/fineweb_{tokenizer}_bpe.model"
    )
    assert len(problems) == len(messages)
    for problem, message in zip(problems, messages, strict=True):
        assert re.search(message, problem)


def cut_shard(folder: Path) -> None:
    os.truncate(folder / "fineweb_train_000001.bin", 1100)


def empty_shard(folder: Path) -> None:
    os.truncate(folder / "fineweb_val_000000.bin", 0)


def foreign_shard(folder: Path) -> None:
    (folder / "fineweb_train_000000.bin").write_bytes(b"\0" * 2000)


def remove_shard(folder: Path) -> None:
    (folder / "fineweb_train_000001.bin").unlink()


def remove_validation(folder: Path) -> None:
    for path in find_shards(folder, "val"):
        path.unlink()


def change_id(folder: Path) -> None:
    path = folder / "fineweb_train_000001.bin"
    ids = open_shard(path).copy()
    ids[3] = 300
    write_shard(path, ids)


def leak(folder: Path) -> None:
    """Put a validation document between two training documents."""
    path = folder / "fineweb_train_000000.bin"
    val_ids, ids = open_shard(find_shards(folder, "val")[0]), open_shard(path)
    starts = np.flatnonzero(ids == 1)
    write_shard(path, np.concatenate((ids[: starts[1]], val_ids[: np.flatnonzero(val_ids == 1)[1]], ids[starts[1] :])))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_shard, r"fineweb_train_000001\.bin is 1100 bytes where its header gives 250 ids"),
        (empty_shard, r"fineweb_val_000000\.bin is 0 bytes, shorter than its 1024-byte header"),
        (foreign_shard, r"fineweb_train_000000\.bin is not a token shard"),
        (remove_shard, r"the train shards of .* have a gap, fineweb_train_000001\.bin is missing"),
        (remove_validation, r"no val shards"),
        (change_id, r"fineweb_train_000001\.bin has token id 300, outside the tokenizer's vocabulary of 300"),
        (leak, r"1 of 5 validation documents are in the train shards too"),
    ],
)
def test_what_a_run_could_not_trust(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(without_manifest(folder))
    problems = problems_of(folder)
    assert len(problems) == 1
    assert re.search(message, problems[0])


def test_every_broken_shard_is_reported(folder: Path) -> None:
    cut_shard(without_manifest(folder))
    empty_shard(folder)
    assert len(problems_of(folder)) == 2


def test_duplicates_within_a_split_are_counted_but_trusted(tmp_path: Path) -> None:
    prepare([*DOCUMENTS, DOCUMENTS[9], DOCUMENTS[9]], tmp_path, source="words", val_docs=5, tokenizer=300)
    (train, val), problems = verify_folder(tmp_path, tmp_path / "tokenizer.model")
    assert problems == []
    assert (train.num_documents, train.num_duplicates, val.num_duplicates) == (27, 2, 0)


def test_another_tokenizer_of_the_same_size_is_noticed_by_the_manifest(folder: Path, tmp_path: Path) -> None:
    prepare(DOCUMENTS[::-1], tmp_path / "other", source="words", val_docs=20, tokenizer=300)
    shutil.copyfile(tmp_path / "other/tokenizer.model", folder / "tokenizer.model")
    assert any("has other bytes than its manifest.json says" in problem for problem in problems_of(folder))


def test_counts_are_held_against_the_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["num_documents"] = 24
    manifest["splits"]["val"]["num_tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    problems = problems_of(folder)
    assert [problem.split(" has ")[1].split(":")[0] for problem in problems] == [
        "25 train documents where its manifest.json says 24",
        f"{manifest['splits']['val']['num_tokens'] - 1} val tokens where its manifest.json says "
        f"{manifest['splits']['val']['num_tokens']}",
    ]


def test_a_wrong_byte_count_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSpaces:
        def __init__(self, tokenizer: object) -> None:
            self.right = right(tokenizer)  # type: ignore[arg-type]

        def target_bytes(self, previous_ids: object, target_ids: object) -> object:
            return self.right.piece_bytes[target_ids]  # type: ignore[index]

    right = verify.token_byte_table
    monkeypatch.setattr(verify, "token_byte_table", NoSpaces)
    (problem,) = problems_of(folder)
    assert f"where their decoded text has {sum(map(len, DOCUMENTS[:5]))}" in problem


@pytest.mark.parametrize("num_ids_cut", [0, 1, 2, 3])
def test_validation_may_end_inside_a_character(folder: Path, num_ids_cut: int) -> None:
    path = find_shards(without_manifest(folder), "val")[-1]
    ids = open_shard(path)
    snowman = np.flatnonzero(ids == 4 + 0xE2)
    assert len(snowman)
    write_shard(path, ids[: snowman[-1] + num_ids_cut].copy())
    assert problems_of(folder) == []


def test_many_documents_are_checked_in_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "DECODE_BATCH_DOCUMENTS", 2)
    reports, problems = verify_folder(folder, folder / "tokenizer.model")
    assert problems == []
    assert reports[1].text_bytes == sum(map(len, DOCUMENTS[:5]))


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at"):
        verify_folder(folder, folder / "gone.model")


def test_table(folder: Path) -> None:
    reports, _ = verify_folder(folder, folder / "tokenizer.model")
    header, train, val = report_table(reports).splitlines()
    assert header.split() == ["split", "shards", "tokens", "documents", "duplicates", "bytes", "per", "token"]
    assert train.split()[0] == "train"
    assert val.split()[0] == "val"
    assert float(val.split()[-1]) == pytest.approx(reports[1].text_bytes / (reports[1].num_tokens - 1), abs=1e-4)


def test_command_exits_with_what_it_found(folder: Path) -> None:
    command = [sys.executable, "-m", "datamodules.verify", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("no problems found\n")
    empty_shard(folder)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "error: shard" in result.stderr
    assert "Traceback" not in result.stderr
