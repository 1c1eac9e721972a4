"""TensorBoard's log of a run: its scalars, its settings, and the order in which its charts are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from callbacks.run_folder import RunFolder

LAYOUT = {
    "Score": {
        "bits per byte": ["Multiline", ["bits_per_byte/.*", "result/(?!loss).*"]],
        "loss, nats per token": ["Multiline", ["loss/.*", "result/loss"]],
    },
    "Rates": {
        "learning rates": ["Multiline", ["lr/.*"]],
        "Muon's momentum": ["Multiline", ["momentum"]],
        "gradient norm": ["Multiline", ["optimizer/gradient_norm"]],
        "phases": ["Multiline", ["phase/.*"]],
    },
    "Speed": {
        "tokens per second": ["Multiline", ["speed/tokens_per_second"]],
        "seconds of training": ["Multiline", ["speed/elapsed_seconds"]],
        "passes over the data": ["Multiline", ["speed/epoch_of_data"]],
    },
    "Quantization": {
        "relative error by storage": ["Multiline", ["quantization/error_.*"]],
        "bytes by storage": ["Multiline", ["quantization/bytes_.*"]],
    },
}
"""The Custom Scalars tab: charts by category, each with patterns of tags."""

COMPARED = ("result/bits_per_byte", "bits_per_byte/val", "loss/train", "speed/tokens_per_second")
"""Tags of the scalars that the HParams tab shows beside a run's settings."""


NOT_COMPARED = ("trainer", "attention", "warmup", "checkpoint", "ckpt_path")
"""Sections of the settings that the HParams tab leaves out: they say how a run goes, not what it trains."""


class TensorBoardLog(TensorBoardLogger):
    """TensorBoard's log in a run's folder.

    It ends with a warning, not the run, where the disk does not take it.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.runs, name="", version="", default_hp_metric=False)
        self._folder = folder

    @property
    def root_dir(self) -> str:
        """The run's folder."""
        return self._folder.save_dir

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._folder.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer of the log, which begins with the layout of its charts."""
        is_new = self._experiment is None
        writer = super().experiment
        if is_new:
            # Tensorboard's own thread raises what the disk refuses, at some later call.
            events = writer._get_file_writer().event_writer._async_writer
            events._writer = events._worker._record_writer = _UntilDiskIsFull(events._writer, self.log_dir)
            writer.add_custom_scalars(LAYOUT)
        return writer

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Show the settings in the HParams tab, beside the last values of the scalars that a person compares."""
        compared = {name: value for name, value in params.items() if name not in NOT_COMPARED}
        settings = self._sanitize_params(_flat(compared))
        # The third, the session's end, only tells when the run ended; the run has just begun.
        experiment, start, _ = hparams(settings, dict.fromkeys(COMPARED, 0.0))
        for summary in (experiment, start):
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Write what has been logged; the settings are in ``config.yaml``."""
        self.experiment.flush()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, as on the command line, without those that are unset."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


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
