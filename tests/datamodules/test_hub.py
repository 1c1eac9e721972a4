"""Fetching from a hub that fails in every way that was seen: retries, one sentence in the end, and counted bytes."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from components.errors import UserError
from datamodules import hub as hub_module
from datamodules.hub import Hub
from tests.datamodules.stand_in_hub import ALWAYS, REPOSITORY, StandInHub

FILES = {f"folder/{name}.bin": name.encode() * 900 for name in "abcd"}
NAMES = [PurePosixPath(name) for name in FILES]
B = "folder/b.bin"


@pytest.fixture
def hub(server: StandInHub, tmp_path: Path) -> Hub:
    server.files = dict(FILES)
    return Hub(REPOSITORY, tmp_path)


def check(path: Path) -> None:
    """Each file has 900 letters."""
    if path.stat().st_size != 900:
        raise UserError(f"{path.name} has {path.stat().st_size} letters: do something")


def fetch_all(hub: Hub) -> None:
    """Fetch every file and look at what came."""
    paths = hub.fetch_all(NAMES, check)
    assert [path.relative_to(hub.folder) for path in paths] == [Path(name) for name in NAMES]
    assert [path.read_bytes() for path in paths] == list(FILES.values())


def test_files_keep_their_paths_and_their_order(hub: Hub) -> None:
    fetch_all(hub)


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
def test_a_passing_fault_is_retried(hub: Hub, server: StandInHub, faults: dict[str, list[str]]) -> None:
    server.faults = {(method, B): list(kinds) for method, kinds in faults.items()}
    fetch_all(hub)
    assert not any(server.faults.values())


def test_a_broken_transfer_goes_on_where_it_broke_off(hub: Hub, server: StandInHub) -> None:
    server.faults = {("GET", B): ["break off"]}
    fetch_all(hub)
    assert server.requests.count(("GET", B)) == 2


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_retry_after_is_waited_for(hub: Hub, server: StandInHub, sleeps: list[float], method: str) -> None:
    server.faults = {(method, B): ["429", "429"]}
    fetch_all(hub)
    assert max(sleeps) >= 7


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"GET": "empty", "HEAD": "empty"}, r"4 attempts \(b\.bin has 0 letters\)"),
        ({"GET": "short", "HEAD": "short"}, r"4 attempts \(b\.bin has 450 letters\)"),
        ({"GET": "short"}, r"4 attempts \(Consistency check failed: file should be of size 900"),
        ({"GET": "break off"}, r"4 attempts \(.*(peer closed connection|IncompleteRead|Consistency)"),
        ({"GET": "drop"}, r"4 attempts \(.*[Ss]erver disconnected"),
        ({"GET": "429"}, r"4 attempts \(.*429"),
        ({"GET": "503"}, r"4 attempts \(.*503"),
        ({"HEAD": "503"}, r"cannot be fetched from http://127\.0\.0\.1.*503.*check the network"),
        ({"HEAD": "429"}, r"cannot be fetched from http://127\.0\.0\.1.*429.*check the network"),
    ],
    ids=str,
)
def test_a_lasting_fault_ends_in_one_sentence(
    hub: Hub, server: StandInHub, faults: dict[str, str], message: str
) -> None:
    server.faults = {(method, B): [kind] * ALWAYS for method, kind in faults.items()}
    with pytest.raises(UserError, match=message) as error:
        hub.fetch_all(NAMES, check)
    assert "\n" not in str(error.value)
    assert B in str(error.value)
    server.faults.clear()
    fetch_all(Hub(REPOSITORY, hub.folder))


def test_a_file_that_the_repository_does_not_have(hub: Hub, server: StandInHub) -> None:
    del server.files[B]
    with pytest.raises(UserError, match=rf"{REPOSITORY} at http://127\.0\.0\.1.* has no file {B}"):
        hub.fetch_all(NAMES, check)
    assert not [name for method, name in server.requests if method == "GET"]  # told before anything is fetched


def test_a_repository_that_does_not_exist(server: StandInHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no dataset someone/else at .*check --repository"):
        Hub("someone/else", tmp_path).fetch(NAMES[0], check)


def test_no_network(tmp_path: Path, use_endpoint: Callable[[str], None], sleeps: list[float]) -> None:
    with StandInHub(REPOSITORY) as closed:
        pass
    use_endpoint(closed.url)
    with pytest.raises(UserError, match=r"a\.bin cannot be fetched .*onnection refused.*check the network"):
        Hub(REPOSITORY, tmp_path).fetch(NAMES[0], check)


def test_the_progress_counts_every_byte_once(hub: Hub, server: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(hub_module.tqdm):  # type: ignore[name-defined]
        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            if not self.disable:
                bars.append(self)

    monkeypatch.setattr(hub_module, "tqdm", Bar)
    a, b, c, _ = FILES
    server.faults = {("GET", a): ["break off"], ("GET", b): ["short"], ("GET", c): ["503"]}
    fetch_all(hub)
    (bar,) = bars
    assert bar.n == bar.total == sum(map(len, FILES.values()))
