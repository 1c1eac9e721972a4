import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from components.errors import UserError
from datamodules import download as download_module
from datamodules.download import REPOSITORY, download
from datamodules.prepare import prepare
from datamodules.shards import open_shard

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "fineweb_sample"
TEXT = "the quick brown fox jumps over a lazy dog while seven wizards boil 12 kettles of tea"
WORDS = TEXT.split()
DOCUMENTS = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(20 + i)).encode() for i in range(30)]
DATASET = "datasets/datasets/fineweb10B_sp300"
TRAIN = [f"{DATASET}/fineweb_train_{index:06d}.bin" for index in range(3)]
VAL = f"{DATASET}/fineweb_val_000000.bin"
MODEL = "datasets/tokenizers/fineweb_300_bpe.model"
MANIFEST = "datasets/manifest.json"


class StandInHub(ThreadingHTTPServer):
    """Serves files as the hub does, and misbehaves as told: `faults[method, name]` is used up, one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        name = self.path.removeprefix(f"/datasets/{REPOSITORY}/resolve/main/")
        self.server.requests.append((self.command, name))
        faults = self.server.faults.get((self.command, name), [])
        fault = faults.pop(0) if faults else ""
        if fault == "drop":
            self.close_connection = True
            return
        if fault in ("429", "503"):
            self.send_response(int(fault))
            if fault == "429":
                self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        whole = self.server.files[name]
        body = b"" if fault == "empty" else whole[: len(whole) // 2] if fault == "short" else whole
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : len(body) // 2] if fault == "break off" else body[start:])
        self.close_connection = True


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
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(download_module, "FIRST_DELAY_SECONDS", 0.001)
    return slept


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(export: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, sleeps: list[float]) -> Iterator[StandInHub]:
    with StandInHub() as server:
        server.files = dict(export)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        use(monkeypatch, server.url)
        yield server
        server.shutdown()


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
    settings = download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == without_manifest(hub.files)
    assert settings == (
        f"give to fit: --data.path {tmp_path}/datasets/fineweb10B_sp300 "
        f"--data.tokenizer_path {tmp_path}/tokenizers/fineweb_300_bpe.model --model.vocab_size 300"
    )
    assert not (tmp_path / ".downloading").exists()


def test_the_first_train_shards_and_all_of_validation(hub: StandInHub, tmp_path: Path) -> None:
    download(tmp_path, "sp300", 1)
    assert set(files_under(tmp_path)) == {TRAIN[0], VAL, MODEL}


def test_more_shards_later_fetch_only_what_is_missing(hub: StandInHub, tmp_path: Path) -> None:
    download(tmp_path, "sp300", 1)
    hub.requests.clear()
    download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == without_manifest(hub.files)
    fetched = [name for method, name in hub.requests if method == "GET" and name.endswith(".bin")]
    assert sorted(fetched) == TRAIN[1:]


@pytest.mark.parametrize("name", [TRAIN[1], VAL, MODEL, MANIFEST])
@pytest.mark.parametrize(
    "faults",
    [
        {"GET": ["short"]},
        {"GET": ["break off"]},
        {"GET": ["drop"]},
        {"GET": ["429"]},
        {"GET": ["503"]},
        {"GET": ["empty"], "HEAD": ["empty"] * 2},
        {"GET": ["short"], "HEAD": ["short"] * 2},
        {"HEAD": ["drop"]},
        {"HEAD": ["429"]},
        {"HEAD": ["503"]},
    ],
    ids=str,
)
def test_a_passing_fault_is_retried(hub: StandInHub, tmp_path: Path, faults: dict[str, list[str]], name: str) -> None:
    hub.faults = {(method, name): list(kinds) for method, kinds in faults.items()}
    download(tmp_path, "sp300", 3)
    assert hub.faults == {("GET", name): [], ("HEAD", name): []} or not any(hub.faults.values())
    assert files_under(tmp_path) == without_manifest(hub.files)


def test_a_broken_transfer_goes_on_where_it_broke_off(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults = {("GET", TRAIN[0]): ["break off"]}
    download(tmp_path, "sp300", 3)
    assert hub.requests.count(("GET", TRAIN[0])) == 2
    assert files_under(tmp_path) == without_manifest(hub.files)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_retry_after_is_waited_for(hub: StandInHub, tmp_path: Path, sleeps: list[float], method: str) -> None:
    hub.faults = {(method, VAL): ["429", "429"]}
    download(tmp_path, "sp300", 1)
    assert max(sleeps) >= 7


ALWAYS = 100


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"GET": "empty", "HEAD": "empty"}, r"4 attempts \(shard .* is 0 bytes, shorter than its 1024-byte header\)"),
        ({"GET": "short", "HEAD": "short"}, r"4 attempts \(shard .* bytes where its header gives 1300 ids"),
        ({"GET": "short"}, r"4 attempts \(Consistency check failed: file should be of size 3624"),
        ({"GET": "break off"}, r"4 attempts \(.*(peer closed connection|IncompleteRead|Consistency)"),
        ({"GET": "drop"}, r"4 attempts \(.*[Ss]erver disconnected"),
        ({"GET": "429"}, r"4 attempts \(.*429"),
        ({"GET": "503"}, r"4 attempts \(.*503"),
        ({"HEAD": "503"}, r"cannot be fetched from http://127\.0\.0\.1.*503.*check the network"),
        ({"HEAD": "429"}, r"cannot be fetched from http://127\.0\.0\.1.*429.*check the network"),
    ],
    ids=str,
)
def test_a_lasting_fault_ends_in_one_sentence_and_no_file(
    hub: StandInHub, tmp_path: Path, faults: dict[str, str], message: str
) -> None:
    hub.faults = {(method, TRAIN[1]): [kind] * ALWAYS for method, kind in faults.items()}
    with pytest.raises(UserError, match=message) as error:
        download(tmp_path, "sp300", 3)
    assert "\n" not in str(error.value)
    assert "fineweb_train_000001.bin" in str(error.value)
    assert files_under(tmp_path) == {}
    hub.faults.clear()
    download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == without_manifest(hub.files)


def test_whole_files_of_a_failed_attempt_are_not_fetched_again(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "NUM_WORKERS", 1)
    hub.faults = {("GET", TRAIN[2]): ["503"] * ALWAYS}
    with pytest.raises(UserError, match=r"503"):
        download(tmp_path, "sp300", 3)
    hub.faults.clear()
    hub.requests.clear()
    download(tmp_path, "sp300", 3)
    assert [name for method, name in hub.requests if method == "GET" and name.endswith(".bin")] == [TRAIN[2]]


def test_a_file_that_the_manifest_names_but_the_hub_has_not(hub: StandInHub, tmp_path: Path) -> None:
    del hub.files[TRAIN[1]]
    with pytest.raises(UserError, match=r"has no file .*fineweb_train_000001\.bin"):
        download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == {}
    assert not [name for method, name in hub.requests if method == "GET" and name.endswith(".bin")]


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeps: list[float]) -> None:
    with StandInHub() as closed:
        pass
    use(monkeypatch, closed.url)
    with pytest.raises(UserError, match=r"manifest\.json cannot be fetched .*onnection refused.*check the network"):
        download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == {}


def test_a_damaged_shard_that_stands_there_is_replaced(hub: StandInHub, tmp_path: Path) -> None:
    download(tmp_path, "sp300", 3)
    damaged = tmp_path / "datasets/fineweb10B_sp300/fineweb_train_000001.bin"
    damaged.write_bytes(b"")
    hub.faults = {("GET", TRAIN[1]): ["503"] * ALWAYS}
    with pytest.raises(UserError, match="503"):
        download(tmp_path, "sp300", 3)
    assert not damaged.exists()
    hub.faults.clear()
    download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == without_manifest(hub.files)


def test_an_id_outside_the_vocabulary(hub: StandInHub, tmp_path: Path) -> None:
    hub.files[TRAIN[0]] = hub.files[TRAIN[0]][:-2] + (300).to_bytes(2, "little")
    with pytest.raises(UserError, match=r"fineweb_train_000000\.bin .*token id 300 in a vocabulary of 300"):
        download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize(
    ("stat", "message"),
    [
        ("tokens_val", "the val shards have .* tokens where the export's manifest says 1,"),
        ("docs_val", "the val shards have 3 docs where the export's manifest says 1,"),
        ("tokens_train", "the train shards have .* tokens where the export's manifest says 1,"),
    ],
)
def test_counts_are_held_against_the_manifest(hub: StandInHub, tmp_path: Path, stat: str, message: str) -> None:
    right = json.loads(hub.files[MANIFEST])["datasets"][0]["stats"]
    hub.files[MANIFEST] = manifest({**right, stat: 1})
    with pytest.raises(UserError, match=message):
        download(tmp_path, "sp300", 3)
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize(
    ("variant", "num_train_shards", "message"),
    [
        ("sp512", 1, "the export has no variant sp512: choose --variant from byte260, sp300"),
        ("byte260", 1, "does not give the shards and the SentencePiece model of variant byte260"),
        ("sp300", 4, "4 train shards of sp300 cannot be had: choose --train-shards from 1 to 3"),
        ("sp300", 0, "0 train shards of sp300 cannot be had"),
    ],
)
def test_what_the_export_does_not_have(
    hub: StandInHub, tmp_path: Path, variant: str, num_train_shards: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        download(tmp_path, variant, num_train_shards)
    assert files_under(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"datasets": []}'])
def test_a_manifest_of_another_kind(hub: StandInHub, tmp_path: Path, content: bytes) -> None:
    hub.files[MANIFEST] = content
    with pytest.raises(UserError, match=r"manifest"):
        download(tmp_path, "sp300", 3)


def test_the_progress_counts_every_byte_once(hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(download_module.tqdm):  # type: ignore[name-defined]
        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            if not self.disable:
                bars.append(self)

    monkeypatch.setattr(download_module, "tqdm", Bar)
    hub.faults = {("GET", TRAIN[0]): ["break off"], ("GET", TRAIN[1]): ["short"], ("GET", VAL): ["503"]}
    download(tmp_path, "sp300", 3)
    (bar,) = bars
    assert bar.n == bar.total == sum(len(hub.files[name]) for name in [*TRAIN, VAL])


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs ../shared/fineweb_sample")
def test_command_downloads_the_sample(tmp_path: Path) -> None:
    folder, model = SAMPLE / "datasets/fineweb10B_sp1024", "tokenizers/fineweb_1024_bpe.model"
    files = {f"datasets/datasets/fineweb10B_sp1024/{path.name}": path.read_bytes() for path in folder.glob("*.bin")}
    files[f"datasets/{model}"] = (SAMPLE / model).read_bytes()
    stats = {"files_train": 2, "files_val": 1, "tokens_train": 628_457, "tokens_val": 131_072, "docs_val": 109}
    entry = {"name": "fineweb10B_sp1024", "tokenizer_name": "sp_bpe_1024", "stats": stats}
    tokenizer = {"name": "sp_bpe_1024", "model_path": model}
    files[MANIFEST] = json.dumps({"datasets": [entry], "tokenizers": [tokenizer]}).encode()
    with StandInHub() as server:
        server.files = files
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        command = [sys.executable, "-m", "datamodules.download", "--out", str(tmp_path)]
        environment = {"HF_ENDPOINT": server.url, "PATH": "", "HOME": str(tmp_path / "home")}
        run = subprocess.run(
            [*command, "--train-shards", "2"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert f"--data.path {tmp_path}/datasets/fineweb10B_sp1024 " in run.stdout
        assert len(open_shard(tmp_path / "datasets/fineweb10B_sp1024/fineweb_val_000000.bin")) == 131_072
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert run.stderr == "error: 80 train shards of sp1024 cannot be had: choose --train-shards from 1 to 2\n"
        server.shutdown()
