import json
from pathlib import Path

import pytest

from components.errors import UserError
from datamodules import hub as hub_module
from datamodules.download import REPOSITORIES, download
from datamodules.prepare import prepare
from datamodules.shards import open_shard
from tests.datamodules.stand_in_hub import ALWAYS, REPOSITORY, StandInHub, served
from tests.support import SAMPLE, needs_sample, run

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards boil 12 kettles of tea"
WORDS = TEXT.split()
DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(20 + i)).encode() for i in range(30)]
DATASET = "datasets/datasets/fineweb10B_sp300"
TRAIN = [f"{DATASET}/fineweb_train_{index:06d}.bin" for index in range(3)]
VAL = f"{DATASET}/fineweb_val_000000.bin"
MODEL = "datasets/tokenizers/fineweb_300_bpe.model"
MANIFEST = "datasets/manifest.json"


def manifest(stats: dict[str, int]) -> bytes:
    return json.dumps(
        {
            "datasets": [
                {"name": "fineweb10B_sp300", "tokenizer_name": "sp_bpe_300", "stats": stats},
                {"name": "fineweb10B_byte260", "tokenizer_name": "bytes", "stats": stats},
            ],
            "tokenizers": [
                {"name": "sp_bpe_300", "model_path": "tokenizers/fineweb_300_bpe.model"},
                {"name": "bytes", "path": "tokenizers/bytes.json"},
            ],
        }
    ).encode()


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three train shards and one for validation, as the repository names them."""
    folder = tmp_path_factory.mktemp("export")
    made = prepare(DOCUMENTS, folder, source="words", val_docs=3, tokenizer=300, shard_tokens=1300)
    train, val = made.splits["train"], made.splits["val"]
    assert [len(train.shards), len(val.shards)] == [3, 1]
    files = {f"{DATASET}/{shard.name}": (folder / shard.name).read_bytes() for shard in [*train.shards, *val.shards]}
    stats = {"files_train": 3, "files_val": 1, "tokens_train": train.num_tokens, "tokens_val": val.num_tokens}
    stats |= {"docs_train": 27, "docs_val": 3}
    return {**files, MODEL: (folder / "tokenizer.model").read_bytes(), MANIFEST: manifest(stats)}


@pytest.fixture
def hub(export: dict[str, bytes], server: StandInHub) -> StandInHub:
    server.files = dict(export)
    return server


def download_all(folder: Path) -> str:
    return download(folder, "sp300", 3, REPOSITORY)


def files_under(folder: Path) -> dict[str, bytes]:
    """By their names in the repository, but for what is still aside."""
    return {
        f"datasets/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".downloading" not in path.parts
    }


def without_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != MANIFEST}


def test_everything_takes_its_name(hub: StandInHub, tmp_path: Path) -> None:
    settings = download_all(tmp_path)
    assert files_under(tmp_path) == without_manifest(hub.files)
    assert settings == (
        f"give to fit: --data.path {tmp_path}/datasets/fineweb10B_sp300 "
        f"--data.tokenizer_path {tmp_path}/tokenizers/fineweb_300_bpe.model"
    )
    assert not (tmp_path / ".downloading").exists()


def test_the_first_train_shards_and_all_of_validation(hub: StandInHub, tmp_path: Path) -> None:
    download(tmp_path, "sp300", 1, REPOSITORY)
    assert set(files_under(tmp_path)) == {TRAIN[0], VAL, MODEL}


def test_more_shards_later_fetch_only_what_is_missing(hub: StandInHub, tmp_path: Path) -> None:
    download(tmp_path, "sp300", 1, REPOSITORY)
    hub.requests.clear()
    download_all(tmp_path)
    assert files_under(tmp_path) == without_manifest(hub.files)
    fetched = [name for method, name in hub.requests if method == "GET" and name.endswith(".bin")]
    assert sorted(fetched) == TRAIN[1:]


@pytest.mark.parametrize("name", [TRAIN[1], VAL, MODEL, MANIFEST])
@pytest.mark.parametrize("fault", ["short", "empty"])
def test_a_file_that_arrives_damaged_is_fetched_again(hub: StandInHub, tmp_path: Path, fault: str, name: str) -> None:
    hub.faults = {("GET", name): [fault], ("HEAD", name): [fault] * (1 if name in (MODEL, MANIFEST) else 2)}
    download_all(tmp_path)
    assert not any(hub.faults.values())
    assert files_under(tmp_path) == without_manifest(hub.files)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"GET": "empty", "HEAD": "empty"}, r"4 attempts \(shard .* is 0 bytes, shorter than its 1024-byte header\)"),
        ({"GET": "short", "HEAD": "short"}, r"4 attempts \(shard .* bytes where its header gives 1300 ids"),
        ({"GET": "503"}, r"4 attempts \(.*503"),
    ],
    ids=str,
)
def test_a_lasting_fault_leaves_no_file(hub: StandInHub, tmp_path: Path, faults: dict[str, str], message: str) -> None:
    hub.faults = {(method, TRAIN[1]): [kind] * ALWAYS for method, kind in faults.items()}
    with pytest.raises(UserError, match=message):
        download_all(tmp_path)
    assert files_under(tmp_path) == {}
    hub.faults.clear()
    download_all(tmp_path)
    assert files_under(tmp_path) == without_manifest(hub.files)


def test_complete_files_of_a_failed_attempt_are_not_fetched_again(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "NUM_WORKERS", 1)
    hub.faults = {("GET", TRAIN[2]): ["503"] * ALWAYS}
    with pytest.raises(UserError, match=r"503"):
        download_all(tmp_path)
    hub.faults.clear()
    hub.requests.clear()
    download_all(tmp_path)
    assert [name for method, name in hub.requests if method == "GET" and name.endswith(".bin")] == [TRAIN[2]]


def test_a_file_that_the_manifest_names_but_the_hub_has_not(hub: StandInHub, tmp_path: Path) -> None:
    del hub.files[TRAIN[1]]
    with pytest.raises(UserError, match=r"has no file .*fineweb_train_000001\.bin"):
        download_all(tmp_path)
    assert files_under(tmp_path) == {}
    assert not [name for method, name in hub.requests if method == "GET" and name.endswith(".bin")]


def test_a_damaged_shard_that_stands_there_is_replaced(hub: StandInHub, tmp_path: Path) -> None:
    download_all(tmp_path)
    damaged = tmp_path / "datasets/fineweb10B_sp300/fineweb_train_000001.bin"
    damaged.write_bytes(b"")
    hub.faults = {("GET", TRAIN[1]): ["503"] * ALWAYS}
    with pytest.raises(UserError, match="503"):
        download_all(tmp_path)
    assert not damaged.exists()
    hub.faults.clear()
    download_all(tmp_path)
    assert files_under(tmp_path) == without_manifest(hub.files)


def test_an_id_outside_the_vocabulary(hub: StandInHub, tmp_path: Path) -> None:
    hub.files[TRAIN[0]] = hub.files[TRAIN[0]][:-2] + (300).to_bytes(2, "little")
    with pytest.raises(UserError, match=r"fineweb_train_000000\.bin .*token id 300 in a vocabulary of 300"):
        download_all(tmp_path)
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize(
    ("stat", "message"),
    [
        ("tokens_val", "the val shards had .* tokens where the export's manifest says 1,"),
        ("docs_val", "the val shards had 3 docs where the export's manifest says 1,"),
        ("tokens_train", "the train shards had .* tokens where the export's manifest says 1,"),
    ],
)
def test_counts_are_held_against_the_manifest(hub: StandInHub, tmp_path: Path, stat: str, message: str) -> None:
    right = json.loads(hub.files[MANIFEST])["datasets"][0]["stats"]
    hub.files[MANIFEST] = manifest({**right, stat: 1})
    with pytest.raises(UserError, match=message):
        download_all(tmp_path)
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize(
    ("variant", "num_train_shards", "message"),
    [
        ("sp512", 1, "the export has no variant sp512: choose --variant from byte260, sp300"),
        ("byte260", 1, "does not describe the shards and the SentencePiece model of variant byte260"),
        ("sp300", 4, "4 train shards of sp300 were asked for: choose --train-shards from 1 to 3"),
        ("sp300", 0, "0 train shards of sp300 were asked for"),
    ],
)
def test_what_the_export_does_not_have(
    hub: StandInHub, tmp_path: Path, variant: str, num_train_shards: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        download(tmp_path, variant, num_train_shards, REPOSITORY)
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"datasets": []}'])
def test_a_manifest_of_another_kind(hub: StandInHub, tmp_path: Path, content: bytes) -> None:
    hub.files[MANIFEST] = content
    with pytest.raises(UserError, match=r"manifest"):
        download_all(tmp_path)


def test_a_variant_without_a_known_repository(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no repository is known for variant sp300: choose --variant from sp1024, sp4096, sp8192, or"
    ):
        download(tmp_path, "sp300", 1)


@needs_sample
@pytest.mark.parametrize(("size", "num_train_ids", "num_val_ids"), [(1024, 628_457, 131_072), (8192, 420_724, 85_648)])
def test_command_downloads_the_sample_from_the_repository_of_its_variant(
    tmp_path: Path, size: int, num_train_ids: int, num_val_ids: int
) -> None:
    dataset, model = f"fineweb10B_sp{size}", f"tokenizers/fineweb_{size}_bpe.model"
    shards = (SAMPLE / "datasets" / dataset).glob("*.bin")
    files = {f"datasets/datasets/{dataset}/{path.name}": path.read_bytes() for path in shards}
    files[f"datasets/{model}"] = (SAMPLE / model).read_bytes()
    stats = {"files_train": 2, "files_val": 1, "tokens_train": num_train_ids, "tokens_val": num_val_ids}
    entry = {"name": dataset, "tokenizer_name": f"sp_bpe_{size}", "stats": stats}
    tokenizer = {"name": f"sp_bpe_{size}", "model_path": model}
    files[MANIFEST] = json.dumps({"datasets": [entry], "tokenizers": [tokenizer]}).encode()
    command = ("-m", "datamodules.download", "--out", str(tmp_path), "--variant", f"sp{size}")
    with served(StandInHub(REPOSITORIES[f"sp{size}"])) as server:
        server.files = files
        environment = {"HF_ENDPOINT": server.url, "HOME": str(tmp_path / "home")}
        done = run(*command, "--train-shards", "2", **environment)
        assert done.returncode == 0, done.stderr
        assert f"--data.path {tmp_path}/datasets/{dataset} " in done.stdout
        assert len(open_shard(tmp_path / "datasets" / dataset / "fineweb_val_000000.bin")) == num_val_ids
        done = run(*command, **environment)
        assert done.returncode == 1
        assert done.stderr == f"error: 80 train shards of sp{size} were asked for: choose --train-shards from 1 to 2\n"


def test_command_downloads_from_a_repository_given(hub: StandInHub, tmp_path: Path) -> None:
    command = ("-m", "datamodules.download", "--out", str(tmp_path), "--variant", "sp300", "--train-shards", "3")
    environment = {"HF_ENDPOINT": hub.url, "HOME": str(tmp_path / "home")}
    done = run(*command, "--repository", REPOSITORY, **environment)
    assert done.returncode == 0, done.stderr
    assert {name for name in files_under(tmp_path) if "/home/" not in name} == set(without_manifest(hub.files))
