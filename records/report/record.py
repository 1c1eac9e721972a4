"""What a run has left in its folder, as far as it got."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install

from callbacks.export import WEIGHTS_SUFFIX
from callbacks.history import HISTORY, parse_history
from components.errors import UserError
from components.run_files import CONFIG_NAME, RUNS_NAME, SUMMARY_NAME
from records.runs import read_json

Entry = dict[str, Any]
"""A line of a history; see `callbacks.history`."""


@dataclass(frozen=True)
class Record:
    """A run's folder; a run that was killed has no summary, one of an older program no history.

    Attributes:
        folder: ``.../version_N``.
        summary: The result and the facts behind it; empty if the run did not finish.
        config: Every setting; empty if there is no file of them.
        history: What happened, in the order of its lines.
    """

    folder: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    history: list[Entry]

    @property
    def name(self) -> str:
        """The end of the folder's path, without what Lightning adds."""
        parts = [part for part in self.folder.resolve().parts if part != RUNS_NAME]
        return " / ".join(parts[-2:])

    @cached_property
    def start(self) -> Entry:
        """How the run was started; empty if it has no history."""
        return next(iter(self.of("start")), {})

    @cached_property
    def steps(self) -> list[Entry]:
        """The logged optimizer steps."""
        return self.of("step")

    def of(self, kind: str) -> list[Entry]:
        """The lines of a kind."""
        return [entry for entry in self.history if entry["kind"] == kind]

    @property
    def is_fit(self) -> bool:
        """Whether the run trained, or only scored."""
        return "step_stop" in self.summary or bool(self.steps)

    @property
    def budget_seconds(self) -> float:
        """The budget of training time in seconds; 0 if the run's steps are limited instead."""
        return float(self.config.get("clock", {}).get("max_seconds") or 0)

    @property
    def artifact(self) -> Path | None:
        """The file that the run exported, or that it scored; None if it has none."""
        if self.is_fit:
            path = self.folder / str(self.config.get("export", {}).get("filename"))
        else:
            path = Path(str(self.config.get("artifact")))
        return path if path.is_file() else None

    @property
    def weights(self) -> Path | None:
        """The float weights that the artifact was made from."""
        path = None if self.artifact is None else self.artifact.with_suffix(WEIGHTS_SUFFIX)
        return path if path is not None and path.is_file() else None


def open_record(folder: Path) -> Record:
    """Read what a run has left.

    Raises:
        UserError: There is neither a summary nor a history, or one of the files is damaged.
    """
    remedy = "give the version_N folder of a fit or a validate"
    summary, history, config = folder / SUMMARY_NAME, folder / HISTORY, folder / CONFIG_NAME
    if not summary.is_file() and not history.is_file():
        raise UserError(f"{folder} has neither {SUMMARY_NAME} nor {HISTORY}; {remedy}.")
    try:
        settings = yaml.safe_load(config.read_text()) if config.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{config} is not YAML; {remedy}.") from error
    return Record(
        folder,
        read_json(summary, remedy) if summary.is_file() else {},
        settings if isinstance(settings, dict) else {},
        list(parse_history(history.read_text(errors="replace").splitlines())) if history.is_file() else [],
    )
