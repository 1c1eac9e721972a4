"""What a training log says: this project's ``train.log``, or a log in the words of the public scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from components.errors import UserError

_NUMBER = r"([-+0-9.eE]+|nan|inf)"


@dataclass
class TrainLog:
    """The figures of one run's log; None for what it does not say.

    Attributes:
        losses: training loss in nats by optimizer step.
        validations: bits per byte of the validations during training, by optimizer step.
        step_stop: the last optimizer step.
        train_seconds: training time at the end, in seconds.
        eval_seconds: seconds that the final scoring of the exported file took.
        val_loss: loss of the exported file in nats.
        val_bpb: its bits per byte.
        bytes_model: bytes of the exported file.
        num_params: the network's parameters.
        seed: the run's seed.
    """

    losses: dict[int, float] = field(default_factory=dict)
    validations: dict[int, float] = field(default_factory=dict)
    step_stop: int | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    val_loss: float | None = None
    val_bpb: float | None = None
    bytes_model: int | None = None
    num_params: int | None = None
    seed: int | None = None


def read_log(path: Path) -> TrainLog:
    """Read a log.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return parse_log(path.read_text(errors="replace"))
    except OSError as error:
        raise UserError(f"The log {path} cannot be read ({error.strerror}); give a run's train.log.") from error


def parse_log(text: str) -> TrainLog:
    """The figures in a log's text. Where a figure is said several times, the last counts."""
    log = TrainLog()
    for pattern, take in _LINES:
        for found in re.finditer(pattern, text, re.MULTILINE):
            take(log, *found.groups())
    return log


def _loss(log: TrainLog, step: str, loss: str) -> None:
    log.losses[int(step)] = float(loss)


def _validation(log: TrainLog, step: str, bpb: str) -> None:
    log.validations[int(step)] = float(bpb)


def _stop(log: TrainLog, step: str, seconds: str) -> None:
    log.step_stop, log.train_seconds = int(step), float(seconds)


def _public_stop(log: TrainLog, step: str, milliseconds: str) -> None:
    _stop(log, step, str(float(milliseconds) / 1000))


def _result(log: TrainLog, loss: str, bpb: str) -> None:
    log.val_loss, log.val_bpb = float(loss), float(bpb)


def _eval(log: TrainLog, seconds: str) -> None:
    log.eval_seconds = float(seconds)


def _public_eval(log: TrainLog, milliseconds: str) -> None:
    log.eval_seconds = float(milliseconds) / 1000


def _bytes(log: TrainLog, count: str) -> None:
    log.bytes_model = int(count)


def _params(log: TrainLog, count: str) -> None:
    log.num_params = int(count)


def _seed(log: TrainLog, seed: str) -> None:
    log.seed = int(seed)


_LINES = (
    # This project's words.
    (r"^(\d+) parameters\b", _params),
    (rf"^step (\d+) train_loss {_NUMBER} ", _loss),
    (rf"^validation step (\d+) val_loss \S+ val_bpb {_NUMBER}", _validation),
    (rf"^stopped at step (\d+), elapsed {_NUMBER} s", _stop),
    (r"^exported (\d+) bytes", _bytes),
    (rf"^artifact val_loss {_NUMBER} val_bpb {_NUMBER} scored in \S+ s", _result),
    (rf"^artifact val_loss \S+ val_bpb \S+ scored in {_NUMBER} s", _eval),
    # The public scripts' words.
    (r"\bmodel_params:(\d+)", _params),
    (r"\bseed:(\d+)", _seed),
    (rf"^step:(\d+)/\d+ train_loss:{_NUMBER}", _loss),
    (rf"^step:(\d+)/\d+ val_loss:\S+ val_bpb:{_NUMBER}", _validation),
    (rf"^step:(\d+)/\d+ val_loss:\S+ val_bpb:\S+ train_time:{_NUMBER}ms", _public_stop),
    (r"^Serialized model [^:\n]*(?:zstd|zlib|lzma|brotli)[^:\n]*: (\d+) bytes", _bytes),
    (rf"^final_\w+ val_loss:{_NUMBER} val_bpb:{_NUMBER}", _result),
    (rf"^final_\w+_exact val_loss:{_NUMBER} val_bpb:{_NUMBER}", _result),
    (rf"^final_\w+ .*\beval_time:{_NUMBER}ms", _public_eval),
)
