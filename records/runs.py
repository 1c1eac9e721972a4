"""A finished run's folder: its summary, its log and its artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import UserError
from components.run_files import CONFIG_NAME, LOG_NAME, RUNS_NAME, SUMMARY_NAME


@dataclass(frozen=True)
class Run:
    """One finished ``fit``.

    Attributes:
        folder: its log folder, ``.../lightning_logs/version_N``.
        summary: its ``summary.json``.
        artifact: the exported file.
    """

    folder: Path
    summary: dict[str, Any]
    artifact: Path

    @property
    def seed(self) -> int:
        """The run's seed."""
        seed = self.summary["seed"]
        assert isinstance(seed, int)
        return seed

    @property
    def log(self) -> Path:
        """The run's log as plain text."""
        return self.folder / LOG_NAME

    @property
    def config(self) -> Path:
        """Every setting of the run."""
        return self.folder / CONFIG_NAME


def open_run(folder: Path) -> Run:
    """Open a finished fit.

    Raises:
        UserError: there is no such folder, or it is not that of a finished fit.
    """
    remedy = "give the version_N folder of a finished fit"
    summary = read_json(folder / SUMMARY_NAME, remedy)
    if "step_stop" not in summary or summary.get("seed") is None:
        raise UserError(f"{folder / SUMMARY_NAME} is not the summary of a fit with a seed; {remedy}.")
    artifact = folder / Path(summary["artifact"]).name  # the folder may have moved since
    for file in (artifact, folder / CONFIG_NAME, folder / LOG_NAME):
        if not file.is_file():
            raise UserError(f"The run {folder} lacks its {file.name}; {remedy}.")
    return Run(folder, summary, artifact)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: there is no such file, or it does not hold an object; the error ends with the remedy.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; {remedy}.")
    return content


def newest_finished(logs: Path) -> Path | None:
    """The newest of Lightning's version folders that holds a summary."""
    finished = [path.parent for path in logs.glob(f"{RUNS_NAME}/version_*/{SUMMARY_NAME}")]
    return max(finished, key=lambda path: int(path.name.removeprefix("version_")), default=None)
