"""A submission's folder, read once: every check uses the same bytes, even if the files change."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.artifact import MAX_FILE_BYTES
from records.audit.claims import Claims, Number, read_claims
from records.train_log import MAX_BYTES as MAX_LOG_BYTES
from records.train_log import TrainLog, parse_log

SCRIPT_NAME = "train_gpt.py"
_MAX_TEXT_BYTES = 1 << 22
_MAX_ALL_BYTES = 1 << 30
_MAX_FILES = 2000
_MAX_DEPTH = 3
_KINDS = {
    ".py": _MAX_TEXT_BYTES,
    ".json": _MAX_TEXT_BYTES,
    ".md": _MAX_TEXT_BYTES,
    ".log": MAX_LOG_BYTES,
    ".txt": MAX_LOG_BYTES,
    ".golf": MAX_FILE_BYTES,
    ".ptz": MAX_FILE_BYTES,
}
"""The files that are read, by suffix, and their maximum sizes."""


@dataclass(frozen=True)
class Artifact:
    """An exported file.

    Attributes:
        name: its file name.
        suffix: ``.golf`` or ``.ptz``.
        data: its content.
    """

    name: str
    suffix: str
    data: bytes


@dataclass(frozen=True)
class Run:
    """What the folder has for one run; anything missing is None.

    Attributes:
        name: ``seed 42``, or a file name if the seed is ambiguous; "" for a single unnamed run.
        seed: the run's seed.
        claims: its claims: its seed's results, or the submission's own figures if there is one run.
        own_claims: whether those are for this run alone, not a mean or another run's.
        log: its logs, merged.
        artifact: its exported file.
        record: its own record, ``run_seed*.json``.
    """

    name: str
    seed: int | None
    claims: Mapping[str, Number] = field(default_factory=dict)
    own_claims: bool = True
    log: TrainLog | None = None
    artifact: Artifact | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Submission:
    """Everything that an audit knows about a folder.

    Attributes:
        path: the folder.
        names: the files in it.
        refused: files that were not read, and why.
        claims: from its submission.json; empty if missing.
        no_claims: why there are no claims, "" if there are.
        script: the name and content of its script.
        code: every Python file by name.
        has_readme: whether there is a README.md.
        runs: the runs that it covers.
    """

    path: Path
    names: tuple[str, ...]
    refused: tuple[str, ...]
    claims: Claims
    no_claims: str
    script: tuple[str, bytes] | None
    code: Mapping[str, bytes]
    has_readme: bool
    runs: tuple[Run, ...]

    @property
    def num_logs(self) -> int:
        """How many runs have a log."""
        return sum(run.log is not None for run in self.runs)


def read_folder(path: Path) -> Submission:
    """Read a submission's folder without executing anything in it or following its links."""
    files, refused = _read_files(path)
    code = {name: data for name, data in files.items() if name.endswith(".py")}
    scripts = sorted(name for name in code if re.fullmatch(r"train_gpt[^/]*\.py", name))
    script = SCRIPT_NAME if SCRIPT_NAME in scripts else next(iter(scripts), None)
    claims, no_claims = Claims(), "there is no submission.json"
    if "submission.json" in files:
        try:
            claims, no_claims = read_claims(files["submission.json"]), ""
        except ValueError as error:
            no_claims = str(error)
    return Submission(
        path=path,
        names=tuple(files),
        refused=tuple(refused),
        claims=claims,
        no_claims=no_claims,
        script=None if script is None else (script, code[script]),
        code=code,
        has_readme="README.md" in files,
        runs=tuple(_runs(files, claims)),
    )


def _read_files(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """The contents of regular files of known types by relative name, and the rejected files."""
    files: dict[str, bytes] = {}
    refused: list[str] = []
    left = _MAX_ALL_BYTES
    for base, folders, names in os.walk(folder):
        folders.sort()
        depth = len(Path(base).relative_to(folder).parts)
        linked = [name for name in folders if Path(base, name).is_symlink()]
        if depth >= _MAX_DEPTH:
            folders.clear()
        for name in sorted([*names, *linked]):
            path = Path(base, name)
            shown = path.relative_to(folder).as_posix()
            if len(files) + len(refused) >= _MAX_FILES:
                refused.append(f"more than {_MAX_FILES:,} files")
                return files, refused
            try:
                files[shown] = _read_file(path, min(left, _KINDS.get(path.suffix, 0)))
                left -= len(files[shown])
            except ValueError as error:
                refused.append(f"{shown} {error}")
    return files, refused


def _read_file(path: Path, most: int) -> bytes:
    """A regular file's content, b"" for a type that is not read.

    Raises:
        ValueError: it is not a regular file, or too large; the words follow its name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        kind = "is a link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        raise ValueError(kind) from error
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is no plain file")
        if path.suffix not in _KINDS:
            return b""
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"is larger than {most:,} bytes")
    return data


def _runs(files: Mapping[str, bytes], claims: Claims) -> list[Run]:
    """Group files into runs by the seeds in names and logs, or all together if there is one run."""
    logs = _logs(files)
    artifacts = {name: data for name, data in files.items() if name.endswith((".golf", ".ptz"))}
    records = {name: files[name] for name in files if re.search(r"(^|/)run_seed\d+\.json$", name)}
    seeds = {name: _seed_in(name) for name in (*artifacts, *records)} | {name: log.seed for name, log in logs.items()}
    known = sorted({seed for seed in (*seeds.values(), *claims.seeds) if seed is not None})
    alone = len(known) <= 1 and all(len(group) <= 1 for group in (logs, artifacts, records))
    runs = []
    left = [*logs, *artifacts]
    wanted: list[int | None] = [*known] if known or not alone else [None]
    for seed in wanted:
        own = [name for name in seeds if seeds[name] == seed or alone]
        trained = [name for name in own if name in logs and logs[name].step_stop is not None]
        exported = [name for name in own if name in artifacts]
        recorded = [name for name in own if name in records]
        taken = [name for name in own if name in logs] if len(trained) <= 1 else []
        taken += exported if len(exported) == 1 else []
        left = [name for name in left if name not in taken]
        run = Run(
            name="" if seed is None else f"seed {seed}",
            seed=seed,
            claims=claims.seeds.get(seed, {} if claims.seeds else claims.top) if seed is not None else claims.top,
            own_claims=alone or seed in claims.seeds,
            log=_together([logs[name] for name in taken if name in logs]),
            artifact=_artifact(exported[0], files) if len(exported) == 1 else None,
            record=_record(files[recorded[0]]) if len(recorded) == 1 else None,
        )
        # A seed that is only claimed has nothing to check; the check `seeds` reports it.
        if taken or recorded or alone:
            runs.append(run)
    for name in left:
        artifact = _artifact(name, files) if name in artifacts else None
        runs.append(Run(name, None, claims.top, False, logs.get(name), artifact))
    return runs


def _artifact(name: str, files: Mapping[str, bytes]) -> Artifact:
    return Artifact(name, Path(name).suffix, files[name])


def _logs(files: Mapping[str, bytes]) -> dict[str, TrainLog]:
    """The logs by file name, without duplicates; a seed in the name is the log's seed."""
    logs: dict[str, TrainLog] = {}
    seen: set[bytes] = set()
    for name in sorted(files, key=lambda name: (_seed_in(name) is None, name)):
        if not name.endswith((".log", ".txt")) or files[name] in seen:
            continue
        log = parse_log(files[name].decode(errors="replace"))
        if name.endswith(".log") or log.step_stop is not None or log.scorings:  # a .txt may be anything
            seen.add(files[name])
            seed = _seed_in(name)
            logs[name] = log if seed is None else replace(log, seed=seed)
    return dict(sorted(logs.items()))


def _together(logs: list[TrainLog]) -> TrainLog | None:
    """Merge one run's logs into one: its training, and any later scorings."""
    if not logs:
        return None
    trained = next((log for log in logs if log.step_stop is not None), logs[0])
    later = [scoring for log in logs if log is not trained for scoring in log.scorings]
    return replace(trained, scorings=(*trained.scorings, *later))


def _seed_in(name: str) -> int | None:
    found = re.search(r"seed_?(\d{1,18})", Path(name).name)
    return int(found[1]) if found else None


def _record(data: bytes) -> Mapping[str, Any] | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
