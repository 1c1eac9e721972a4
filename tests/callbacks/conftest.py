"""One small run that several modules look at."""

import contextlib
import io
from pathlib import Path

import pytest

from cli import main
from tests.callbacks.support import NARROW, FinishedRun
from tests.support import fit_arguments


@pytest.fixture(scope="session")
def finished_run(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of 12 steps through every phase, with a progress bar that shows every step; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        cli = main(fit_arguments(_corpus, folder, **NARROW, **{"trainer.enable_progress_bar": "true"}))
    return FinishedRun(cli, folder, stdout.getvalue(), _corpus)
