"""history.jsonl: what happened in a run, for programs to draw; one JSON object per line, whatever the loggers are.

======== ============================================================================================================
line     what it has, beside its ``kind``
======== ============================================================================================================
start    ``command``: the words of the command line; ``layers``: [name, settings] of the program's defaults and of each
         configuration file, in the order in which later ones override earlier ones
step     ``step``, ``elapsed`` (s), ``phase``, ``metrics`` by tag, and ``step_seconds``: the duration of each optimizer
         step since the line before
score    ``step``, ``elapsed``, and a validation's ``val_loss`` (nats per token) and ``val_bpb`` (bits per byte)
event    ``step``, ``elapsed``, ``tag`` and ``sentence``
======== ============================================================================================================

A number that is not finite is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.clock import Clock
from callbacks.common import Event, ends_step, find, phase_of
from callbacks.line_file import LineFile
from callbacks.monitor import Monitor
from callbacks.scoring import ValidationScore

HISTORY = "history.jsonl"
"""Name of the file in a run's folder."""

Layer = tuple[str, dict[str, Any]]
"""A source of settings: its name, and its settings as nested dictionaries."""


class History(Callback):
    """Write ``history.jsonl`` in the run's folder, on rank 0, as things happen.

    It must be called after the callbacks that it reads: the clock, the monitor and the validation score. A run that
    goes on from a checkpoint begins with what the checkpoint's run had written up to it.

    Args:
        command: The words of the command line.
        layers: Where the settings come from, later ones over earlier ones.
        checkpoint: The checkpoint from which the run goes on.

    Attributes:
        folder: The run's folder; None on other ranks than 0.
    """

    def __init__(self, command: Sequence[str], layers: Sequence[Layer], checkpoint: Path | None = None) -> None:
        super().__init__()
        self._start = {"command": list(command), "layers": [list(layer) for layer in layers]}
        self._checkpoint = checkpoint
        self.folder: Path | None = None
        self._file: LineFile | None = None
        self._step_seconds: list[float] = []
        self._last_elapsed = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the file, and write how the run was started."""
        log_dir = trainer.log_dir  # a broadcast from rank 0, so every rank must take part
        if trainer.is_global_zero:
            assert log_dir is not None
            self.folder = Path(log_dir)
            self._file = LineFile(self.folder / HISTORY)
            self._write({"kind": "start", **self._start})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy what the checkpoint's run had written up to the checkpoint."""
        self._last_elapsed = find(trainer, Clock).elapsed
        if self._file is not None and self._checkpoint is not None:
            for line in _written_until(trainer.global_step, self._checkpoint.resolve().parent.parent / HISTORY):
                self._file.write(line)
            self.on_event(trainer, Event("resume", f"resumed at step {trainer.global_step} from {self._checkpoint}"))

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Write an event."""
        self._write({**_moment(trainer, "event"), "tag": event.tag, "sentence": event.sentence})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a step's duration, and write a line for a step that the monitor logged."""
        if not ends_step(trainer, batch_idx):
            return
        elapsed = find(trainer, Clock).elapsed
        self._step_seconds.append(round(elapsed - self._last_elapsed, 6))
        self._last_elapsed = elapsed
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            metrics = _finite(find(trainer, Monitor).metrics)
            line = {"phase": phase_of(trainer), "metrics": metrics, "step_seconds": self._step_seconds}
            self._write({**_moment(trainer, "step"), **line})
            self._step_seconds = []

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a validation's score."""
        score = find(trainer, ValidationScore).score
        if trainer.state.fn == TrainerFn.FITTING and score is not None:
            figures = _finite({"val_loss": score.loss, "val_bpb": score.bits_per_byte})
            self._write({**_moment(trainer, "score"), **figures})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False))


def parse_history(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects on the lines of a history; a line that a full disk or a kill cut short is left out."""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "kind" in entry:
            yield entry


def _written_until(step: int, path: Path) -> Iterator[str]:
    """The lines up to a step in an earlier run's history; none if the checkpoint has been moved away from it."""
    if path.is_file():
        for entry in parse_history(path.read_text(errors="replace").splitlines()):
            if entry["kind"] != "start" and entry["step"] <= step:
                yield json.dumps(entry, separators=(",", ":"))


def _moment(trainer: Trainer, kind: str) -> dict[str, Any]:
    return {"kind": kind, "step": trainer.global_step, "elapsed": round(find(trainer, Clock).elapsed, 6)}


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
