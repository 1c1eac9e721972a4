"""The folder that belongs to one run: claimed so that no two runs share it, found again when a run goes on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from components.checkpoint_file import checkpoints_in
from components.errors import UserError
from components.run_files import CONFIG_NAME, RUNS_NAME, SUMMARY_NAME

CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in a run's folder."""
LOCK = "lock"
"""Name of the file in a run's folder that is locked for as long as the run lives."""
LAUNCH = "launch"
"""Name of the file in a run's folder that holds the name of the torchrun that started it."""


class RunFolder(Logger):
    """A new folder ``version_N`` of the run's own, with or without loggers that write to it.

    It logs nothing. The trainer takes the folder of its first logger for its own. Rank 0 claims the folder by creating
    it, which only one process can do; other ranks learn it from the trainer.

    Args:
        runs: The runs folder.
    """

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs
        self._folder: Path | None = None
        self._lock: IO[str] | None = None

    @property
    def save_dir(self) -> str:
        """The folder, claimed when it is first asked for; on ranks other than 0 the runs folder, which is never used.

        Raises:
            UserError: The runs folder cannot take a run.
        """
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return str(self.runs)
        if self._folder is None:
            try:
                self._folder, self._lock = _claim(self.runs / RUNS_NAME)
                if _launch() is not None:
                    (self._folder / LAUNCH).write_text(f"{_launch()}")
            except OSError as error:
                raise UserError(
                    f"The runs folder {self.runs} cannot take a run ({error.strerror}); make room, or set "
                    "trainer.default_root_dir to another folder."
                ) from error
        return str(self._folder)

    @property
    def name(self) -> str:
        """None: callbacks that join folder, name and version find the folder itself."""
        return ""

    @property
    def version(self) -> str:
        """None, as with the name."""
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log nothing."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log nothing: ``config.yaml`` is in the folder."""

    def finalize(self, status: str) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()


def _claim(parent: Path) -> tuple[Path, IO[str]]:
    """Create the first free folder ``version_N``, and lock it."""
    parent.mkdir(parents=True, exist_ok=True)
    version = 1 + max((_version(run) for run in _runs_in(parent)), default=-1)
    while True:
        run = parent / f"version_{version}"
        try:
            run.mkdir()
        except FileExistsError:
            version += 1
        else:
            return run, _locked(run)


def _runs_in(parent: Path) -> Iterator[Path]:
    return (path for path in parent.glob("version_*") if path.name.removeprefix("version_").isdigit() and path.is_dir())


def _version(run: Path) -> int:
    return int(run.name.removeprefix("version_"))


def last_checkpoint(runs: Path, config: Mapping[str, Any]) -> Path:
    """The newest checkpoint of the only unfinished run of a configuration.

    A run is unfinished if it has a checkpoint and no summary, its process is dead, and no other run has gone on from
    it as far as a checkpoint.

    Args:
        runs: The runs folder.
        config: The configuration of the run that is to go on, seed included, as its file would hold it.

    Raises:
        UserError: There is no such run, or several.
    """
    same = [
        run for run in sorted(_runs_in(runs / RUNS_NAME), key=_version) if _settings_of(run) == _without_origin(config)
    ]
    gone_on = {origin for run in same if _has_result(run) and (origin := _origin_of(run)) is not None}
    unfinished = [
        run
        for run in same
        if checkpoints_in(run / CHECKPOINTS)
        and not (run / SUMMARY_NAME).exists()
        and run.resolve() not in gone_on
        and not _is_alive(run)
    ]
    where = f"of this configuration and seed under {runs}"
    if not unfinished:
        raise UserError(
            f"There is no unfinished run with a checkpoint {where}; give --ckpt_path a checkpoint's file, or leave it "
            "out to start."
        )
    newest = [checkpoints_in(run / CHECKPOINTS)[0] for run in unfinished]
    if len(newest) > 1:
        raise UserError(
            f"There are {len(newest)} unfinished runs {where}; give --ckpt_path one of {', '.join(map(str, newest))}."
        )
    return newest[0]


def is_restarted() -> bool:
    """Whether torchrun has started this process again, after a rank was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def checkpoint_of_launch(runs: Path, config: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint of the run that this torchrun has started and restarted; None if it has saved none.

    torchrun's ``--rdzv-id`` tells launches apart, so give one where several share a runs folder.

    Args:
        runs: The runs folder.
        config: The run's configuration, as for `last_checkpoint`.
    """
    launched = [
        run
        for run in sorted(_runs_in(runs / RUNS_NAME), key=_version)
        if _launch_of(run) == _launch() and _settings_of(run) == _without_origin(config)
    ]
    saved = [checkpoints_in(run / CHECKPOINTS) for run in launched]
    return next((found[0] for found in reversed(saved) if found), None)


def _launch() -> str | None:
    """The name of the torchrun that has started this process; None without one."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def _launch_of(run: Path) -> str | None:
    file = run / LAUNCH
    return file.read_text() if file.exists() else None


def _settings_of(run: Path) -> dict[str, Any] | None:
    config = _config_of(run)
    return None if config is None else _without_origin(config)


def _config_of(run: Path) -> dict[str, Any] | None:
    try:
        config = yaml.safe_load((run / CONFIG_NAME).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None  # killed before it was whole
    return config if isinstance(config, dict) else None


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "ckpt_path"}


def _origin_of(run: Path) -> Path | None:
    """The folder of the run whose checkpoint this one began with."""
    checkpoint = (_config_of(run) or {}).get("ckpt_path")
    return None if checkpoint is None else Path(checkpoint).resolve().parents[1]


def _has_result(run: Path) -> bool:
    return (run / SUMMARY_NAME).exists() or bool(checkpoints_in(run / CHECKPOINTS)) or _is_alive(run)


def _locked(run: Path) -> IO[str]:
    """Lock a run's folder until this process ends, however it ends; the lock is held by the file returned."""
    file = (run / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        rank_zero_warn(
            f"{run} cannot be locked ({error.strerror}), so --ckpt_path last may take this run for a dead one."
        )
    return file


def _is_alive(run: Path) -> bool:
    try:
        with (run / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no lock: an older program's run, or a file system without locks, of which the run has warned
    return False
