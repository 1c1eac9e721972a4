"""Fixtures of the whole suite."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import pytest
import torch

from datamodules.corpus import build_corpus


@pytest.fixture(scope="session")
def _corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_corpus(folder, lambda: iter(text for _, text in sorted(topics.topics.items())))
    return folder


@pytest.fixture
def data_folder(_corpus: Path, tmp_path: Path) -> Path:
    """A folder of one's own with small train and validation shards of real text and their tokenizer."""
    return Path(shutil.copytree(_corpus, tmp_path / "data"))


@pytest.fixture(autouse=True)
def _clean_torch() -> Iterator[None]:
    """One thread: small matrices on a busy machine only wait for a second one. And no compiler setting left behind."""
    torch.set_num_threads(1)
    yield
    torch.compiler.set_stance("default")
