"""A check's input: the folder's content, the audit's arguments, and its children's findings."""

from __future__ import annotations

import functools
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from records.audit.contained import Ended, Job, Limits, Runner
from records.audit.folder import Artifact, Run, Submission
from records.audit.verdicts import Failed, Unknown, Word, printable
from records.train_log import TrainLog

_HERE = Path(__file__).parent
_READ = Limits(seconds=60, memory_bytes=2 << 30)
_LOAD = Limits(seconds=300)
_IMPORT = Limits(seconds=300)


@dataclass(frozen=True)
class Reading:
    """What the script's text says; it is read, never run.

    Attributes:
        settings: its hyperparameters, or the settings in this project's CONFIG by dotted name.
        packed: whether this project packed it.
        lengths: bytes of each of its texts, by location.
        imports: the modules that it imports.
        hints: places to look at, each a question, a place and a reason.
        why_not: why it could not be read, in words; "" if it could.
        newer: whether a newer Python might read it.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    packed: bool = False
    lengths: Mapping[str, int] = field(default_factory=dict)
    imports: Sequence[str] = ()
    hints: Sequence[Mapping[str, str]] = ()
    why_not: str = ""
    newer: bool = False


@dataclass(frozen=True)
class Loaded:
    """What this project's reader finds in an artifact.

    Attributes:
        settings: the network that it describes; None for a public file, which does not describe one.
        num_tensors: number of tensors.
        num_params: number of values in them, or of parameters in the network that it describes.
        why_not: why it could not be read; "" if it could.
    """

    settings: Mapping[str, Any] | None = None
    num_tensors: int = 0
    num_params: int = 0
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class Case:
    """A submission under audit.

    Attributes:
        submission: the folder's content.
        box: runs children.
        data: folder of validation shards; None to skip scoring.
        tokenizer: the shards' SentencePiece model.
        baseline: losses in nats of the seeds to beat; empty for those in the submission.
    """

    submission: Submission
    box: Runner
    data: Path | None = None
    tokenizer: Path | None = None
    baseline: tuple[float, ...] = ()

    def script(self) -> tuple[str, bytes]:
        """The script's name and content.

        Raises:
            Unknown: there is no script.
        """
        if self.submission.script is None:
            raise Unknown("there is no script")
        return self.submission.script

    @functools.cached_property
    def reading(self) -> Reading:
        """What the script's text says; empty if there is no script."""
        if self.submission.script is None:
            return Reading()
        name, data = self.submission.script
        return Reading(**self._own("read", "script.py", data, _READ, f"reading {name}"))

    def loaded(self, artifact: Artifact) -> Loaded:
        """What an artifact contains."""
        if artifact not in self._loaded:
            file = f"model{artifact.suffix}"
            self._loaded[artifact] = Loaded(**self._own("load", file, artifact.data, _LOAD, f"loading {artifact.name}"))
        return self._loaded[artifact]

    @functools.cached_property
    def _loaded(self) -> dict[Artifact, Loaded]:
        return {}

    @functools.cached_property
    def imported(self) -> Mapping[str, Any]:
        """What the script reports about itself when imported; ``why_not`` if it fails or reports nothing."""
        secret = secrets.token_hex(16)
        ended = self.run_script("import", [json.dumps(self._settled())], {}, _IMPORT, secret=secret)
        for line in ended.report.splitlines():
            try:
                said, report = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                continue
            if said == secret and isinstance(report, dict) and ended.code == 0 and ended.stopped is None:
                return report
        return {"why_not": ended.stopped or f"it ended without a report ({ended.last_line})"}

    def _settled(self) -> Mapping[str, Any]:
        """The network in the artifacts, for a script of this project that derives it from the tokenizer."""
        exported = [run.artifact for run in self.submission.runs if run.artifact and run.artifact.suffix == ".golf"]
        return (self.loaded(exported[0]).settings or {}) if self.reading.packed and exported else {}

    def run_script(
        self,
        job: str,
        arguments: Sequence[str],
        files: Mapping[str, bytes],
        limits: Limits,
        keep: Sequence[str] = (),
        secret: str = "",
    ) -> Ended:
        """Run the script itself, alongside its folder's other code."""
        name, _ = self.script()
        command = [sys.executable, "-I", str(_HERE / "stranger.py"), job, name, *arguments]
        doing = printable(f"{job} {name}")
        return self.box.run(Job(command, {**self.submission.code, **files}, limits, keep, secret, doing))

    def run_own(
        self,
        job: str,
        arguments: Sequence[str],
        files: Mapping[str, bytes],
        limits: Limits,
        keep: Sequence[str],
        doing: str,
    ) -> Ended:
        """Run this project's code on the folder's bytes."""
        command = [sys.executable, "-I", str(_HERE / "own.py"), job, *arguments]
        return self.box.run(Job(command, files, limits, keep, doing=printable(doing)))

    def _own(self, job: str, name: str, data: bytes, limits: Limits, doing: str) -> dict[str, Any]:
        ended = self.run_own(job, [name], {name: data}, limits, ["result.json"], doing)
        if ended.stopped is not None or ended.code != 0 or "result.json" not in ended.kept:
            return {"why_not": ended.last_line}
        found: dict[str, Any] = json.loads(ended.kept["result.json"])
        return found


FolderCheck = Callable[[Case], str]
RunCheck = Callable[[Case, Run], str]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: the check's name.
        word: the source that its verdict relies on.
        of_folder: performs it; returns what was found, or raises `Failed`, `Unknown` or `Look`.
        of_run: performs it for one run; one of the two is None.
    """

    name: str
    word: Word
    of_folder: FolderCheck | None = None
    of_run: RunCheck | None = None

    @property
    def passes_when(self) -> str:
        """Its text in the table: its function's docstring."""
        function = self.of_folder or self.of_run
        assert function is not None
        assert function.__doc__ is not None, self.name
        return " ".join(function.__doc__.split())


def is_count(value: object) -> bool:
    """Whether a field is an integer of plausible size."""
    return type(value) is int and 0 <= value < 10**18


def are_counts(value: object) -> bool:
    """Whether a field is a list of integers."""
    return isinstance(value, list) and all(map(is_count, value))


def are_texts(value: object) -> bool:
    """Whether a field is a list of strings."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def need_record(run: Run) -> Mapping[str, Any]:
    """The run's own record.

    Raises:
        Unknown: there is none.
    """
    if run.record is None:
        raise Unknown("the folder has no record of what the run read (run_seed*.json)")
    return run.record


def recorded(run: Run, **kinds: Callable[[object], bool]) -> list[Any]:
    """Fields of the run's own record, each checked for its type.

    Raises:
        Unknown: there is no record, or it lacks a field.
        Failed: a field has the wrong type.
    """
    record = need_record(run)
    if absent := kinds.keys() - record.keys():
        raise Unknown(f"the run's record does not give {', '.join(sorted(absent))}")
    for name, is_kind in kinds.items():
        if not is_kind(record[name]):
            raise Failed(f"{name} in the run's record is not what it should be")
    return [record[name] for name in kinds]


def need_log(run: Run) -> TrainLog:
    """The run's log.

    Raises:
        Unknown: there is no log.
    """
    if run.log is None:
        raise Unknown("there is no log of this run")
    return run.log
