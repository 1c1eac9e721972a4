"""Fixtures of the whole suite."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import pytest
import torch

from datamodules.corpus import build_corpus
from tests.support import NARROW, FinishedRun, Terminal, fit_arguments


@pytest.fixture(scope="session")
def _corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_corpus(folder, lambda: iter(text for _, text in sorted(topics.topics.items())))
    return folder


@pytest.fixture
def data_folder(_corpus: Path, tmp_path: Path) -> Path:
    """A folder for one test, with small training and validation shards of real text and their tokenizer."""
    return Path(shutil.copytree(_corpus, tmp_path / "data"))


@pytest.fixture(scope="session")
def finished_run(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of 12 steps through every phase, with a progress bar that shows every step; not to be changed."""
    from cli import main

    folder = tmp_path_factory.mktemp("finished") / "runs"
    stdout = Terminal()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(Terminal()):
        cli = main(fit_arguments(_corpus, folder, **NARROW, **{"trainer.enable_progress_bar": "true"}))
    return FinishedRun(cli, folder, stdout.getvalue(), _corpus)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here, which takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(autouse=True, scope="module")
def _clean_compiler() -> None:
    """Forget the graphs of other files' tests: the compiler takes no more than a few of one function."""
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def _clean_torch() -> Iterator[None]:
    """Use one thread, since a second one only slows small matrices on a busy machine; reset the compiler's stance."""
    torch.set_num_threads(1)
    yield
    torch.compiler.set_stance("default")
