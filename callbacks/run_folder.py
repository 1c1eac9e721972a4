"""The folder that belongs to one run: claimed so that no two runs share it, found again when a run goes on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch.utils.tensorboard import SummaryWriter

from components.checkpoint_file import checkpoints_in
from components.errors import UserError

RUNS = "lightning_logs"
"""Name of the folder that holds a runs folder's runs."""
CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in a run's folder."""
SUMMARY = "summary.json"
"""Name of the file that a finished run has."""
LOCK = "lock"
"""Name of the file in a run's folder that is locked for as long as the run lives."""
LAUNCH = "launch"
"""Name of the file in a run's folder that holds the name of the torchrun that started it."""


class RunFolder(TensorBoardLogger):
    """TensorBoard's log in a new folder ``version_N`` of the run's own.

    Rank 0 claims the folder by creating it, which only one process can do; other ranks learn it from the trainer. The
    log ends with a warning, not the run, where the disk does not take it.

    Args:
        runs: The runs folder.
    """

    def __init__(self, runs: Path) -> None:
        super().__init__(runs, name=RUNS, version=None)
        self._lock: IO[str] | None = None

    def _get_next_version(self) -> int:
        """Create the first free folder and return its number; on ranks other than 0, where it is never used, -1."""
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return -1
        try:
            run, self._lock = _claim(Path(self.root_dir))
            if _launch() is not None:
                (run / LAUNCH).write_text(f"{_launch()}")
        except OSError as error:
            raise UserError(
                f"The runs folder {self.save_dir} cannot take a run ({error.strerror}); make room, or set "
                "trainer.default_root_dir to another folder."
            ) from error
        return _version(run)

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of TensorBoard's log."""
        is_new = self._experiment is None
        writer = super().experiment
        if is_new:
            # Tensorboard's own thread raises what the disk refuses, at some later call.
            events = writer._get_file_writer().event_writer._async_writer
            events._writer = events._worker._record_writer = _UntilDiskIsFull(events._writer, self.log_dir)
        return writer

    @rank_zero_only
    def save(self) -> None:
        """Write the hyperparameters beside the log, if the disk takes them."""
        try:
            super().save()
        except OSError as error:
            _warn_of_log(self.log_dir, error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the log, and let go of the folder."""
        super().finalize(status)
        if self._lock is not None:
            self._lock.close()


class _UntilDiskIsFull:
    """A writer of records that stops, with a warning, at the first that the disk does not take.

    What follows a half-written record could not be read.
    """

    def __init__(self, records: Any, log_dir: str) -> None:
        self._records = records
        self._log_dir = log_dir
        self._is_full = False

    def write(self, data: bytes) -> None:
        self._try(lambda: self._records.write(data))

    def flush(self) -> None:
        self._try(self._records.flush)

    def close(self) -> None:
        self._try(self._records.close)

    def _try(self, work: Callable[[], None]) -> None:
        if self._is_full:
            return
        try:
            work()
        except OSError as error:
            self._is_full = True
            _warn_of_log(self._log_dir, error)


def _warn_of_log(log_dir: str, error: OSError) -> None:
    rank_zero_warn(f"TensorBoard's log in {log_dir} ends here ({error.strerror}); the run goes on.")


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
    same = [run for run in sorted(_runs_in(runs / RUNS), key=_version) if _settings_of(run) == _without_origin(config)]
    gone_on = {origin for run in same if _has_result(run) and (origin := _origin_of(run)) is not None}
    unfinished = [
        run
        for run in same
        if checkpoints_in(run / CHECKPOINTS)
        and not (run / SUMMARY).exists()
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
        for run in sorted(_runs_in(runs / RUNS), key=_version)
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
        config = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return None  # killed before it was whole
    return config if isinstance(config, dict) else None


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "ckpt_path"}


def _origin_of(run: Path) -> Path | None:
    """The folder of the run whose checkpoint this one began with."""
    checkpoint = (_config_of(run) or {}).get("ckpt_path")
    return None if checkpoint is None else Path(checkpoint).resolve().parents[1]


def _has_result(run: Path) -> bool:
    return (run / SUMMARY).exists() or bool(checkpoints_in(run / CHECKPOINTS)) or _is_alive(run)


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
