"""Fixtures of the tests that download."""

import time
from collections.abc import Callable, Iterator

import huggingface_hub
import pytest

from datamodules import hub as hub_module
from tests.datamodules.stand_in_hub import REPOSITORY, StandInHub, served


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(hub_module, "FIRST_DELAY_SECONDS", 0.001)
    return slept


@pytest.fixture
def use_endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make the hub's client talk to a server."""

    def use(url: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(
            huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return use


@pytest.fixture
def server(use_endpoint: Callable[[str], None], sleeps: list[float]) -> Iterator[StandInHub]:
    """A hub without files."""
    with served(StandInHub(REPOSITORY)) as standing:
        use_endpoint(standing.url)
        yield standing
