"""Training logs: this project's ``train.log``, or a log in the format of any generation of public scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from components.errors import UserError
from records.figures import NUMBER, Figure

MAX_BYTES = 1 << 24
MAX_LINE = 1000
"""Longer lines have no figures: scripts print themselves, and other projects' logs may be any size."""

_COUNT = r"(\d{1,18})"


@dataclass(frozen=True)
class Scoring:
    """One scoring of the model on the validation split.

    Attributes:
        label: what the log calls it.
        val_loss: nats per token.
        val_bpb: bits per byte.
        seconds: how long it took; None if not logged.
    """

    label: str
    val_loss: Figure
    val_bpb: Figure
    seconds: Figure | None


@dataclass(frozen=True)
class TrainLog:
    """The figures in one run's log; None if missing.

    Attributes:
        losses: training loss in nats, by optimizer step.
        validations: bits per byte of validations during training, by optimizer step.
        step_stop: the last optimizer step.
        train_seconds: training time at the end, in seconds; not that of an earlier step.
        train_seconds_within: its maximum error: early steps are logged in tenths of minutes.
        world_size: processes, one per GPU.
        device: ``cuda`` or ``cpu``, only in this project's logs.
        float_score: the last scoring of the weights before quantization.
        scorings: scorings of the exported file, in order: plain, sliding windows, test-time training.
        bytes_model: size of the exported file.
        bytes_code: size of the script that ran, uncompressed if it was compressed later.
        bytes_total: their sum.
        num_params: the network's number of parameters.
        seed: the run's seed.
    """

    losses: dict[int, float] = field(default_factory=dict)
    validations: dict[int, float] = field(default_factory=dict)
    step_stop: int | None = None
    train_seconds: Figure | None = None
    train_seconds_within: float = 0.0
    world_size: int | None = None
    device: str | None = None
    float_score: Scoring | None = None
    scorings: tuple[Scoring, ...] = ()
    bytes_model: int | None = None
    bytes_code: int | None = None
    bytes_total: int | None = None
    num_params: int | None = None
    seed: int | None = None

    @property
    def final(self) -> Scoring | None:
        """The last scoring of the exported file."""
        return self.scorings[-1] if self.scorings else None

    @property
    def val_bpb(self) -> float | None:
        """Its bits per byte."""
        return self.final.val_bpb if self.final else None

    @property
    def step_seconds(self) -> float | None:
        """The mean time per step, in seconds."""
        return self.train_seconds / self.step_stop if self.train_seconds is not None and self.step_stop else None


def read_log(path: Path) -> TrainLog:
    """Read a log.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return parse_log(file.read(MAX_BYTES).decode(errors="replace"))
    except OSError as error:
        raise UserError(f"The log {path} cannot be read ({error.strerror}); give a run's train.log.") from error


def parse_log(text: str) -> TrainLog:
    """Parse the figures in a log's text. If a figure appears several times, the last counts."""
    gathered = _Gathered()
    for line in text.splitlines():
        gathered.read(line[:MAX_LINE])
    return gathered.log()


class _Gathered:
    """The figures from the lines so far."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.validations: dict[int, float] = {}
        self.counts: dict[str, int] = {}
        self.device: str | None = None
        self.stop: tuple[Figure, float] | None = None
        self.scorings: dict[str, Scoring] = {}
        self.total_seconds: Figure | None = None

    def read(self, line: str) -> None:
        """Read the figures in one line."""
        for pattern, names in _COUNTS:
            if found := pattern.search(line):
                self.counts |= {name: int(count) for name, count in zip(names, found.groups(), strict=True)}
        if found := _STEP.match(line):
            self._read_step(int(found[1]), found)
        elif found := _STOP.match(line) or _OUR_STOP.match(line):
            self._stop(int(found["step"]), found["time"], found["unit"])
        elif (found := _CALIBRATED.match(line)) and self.stop is not None:
            self.stop = Figure(found["time"]), 0.0
        elif found := _SCORING.match(line):
            self._read_scoring(found)
        elif found := _TOTAL_SCORING.match(line):
            self.total_seconds = Figure(found[1])
        elif found := _RANKS.match(line):
            self.device = found[1]

    def log(self) -> TrainLog:
        """The figures as a log."""
        before = [scoring for scoring in self.scorings.values() if _FLOAT.search(scoring.label)]
        after: list[Scoring] = []
        for scoring in self.scorings.values():
            # Some scripts repeat the last score, untimed, under a label that older tools look for.
            repeated = scoring.seconds is None and scoring.val_bpb in [other.val_bpb for other in after]
            if not _FLOAT.search(scoring.label) and not repeated:
                after.append(scoring)
        if after and self.total_seconds is not None:
            after[-1] = replace(after[-1], seconds=self.total_seconds)
        seconds, within = self.stop or (None, 0.0)
        return TrainLog(
            losses=self.losses,
            validations=self.validations,
            train_seconds=seconds,
            train_seconds_within=within,
            device=self.device,
            float_score=before[-1] if before else None,
            scorings=tuple(after),
            **self.counts,
        )

    def _read_step(self, step: int, found: re.Match[str]) -> None:
        if found["train"] is not None:
            self.losses[step] = float(found["train"])
        if found["val"] is not None:
            self.validations[step] = float(found["val"])
        if found["time"] is not None and found["of"] == found[1]:  # the last planned step
            self._stop(step, found["time"], found["unit"])
        self.counts["step_stop"] = step

    def _stop(self, step: int, time: str, unit: str) -> None:
        self.counts["step_stop"] = step
        self.stop = (_in_seconds(time, unit), _WITHIN.get(unit, 0.0))

    def _read_scoring(self, found: re.Match[str]) -> None:
        label = found["label"].strip().removesuffix("_exact")
        time, unit = (found["seconds"], "s") if found["seconds"] else (found["milliseconds"], "ms")
        known = self.scorings.pop(label, None)  # the same score with more digits
        self.scorings[label] = Scoring(
            label,
            Figure(found["loss"]),
            Figure(found["bpb"]),
            _in_seconds(time, unit) if time else known.seconds if known else None,
        )


def _in_seconds(time: str, unit: str) -> Figure:
    """A time in seconds with the decimals that its unit implies."""
    factor = {"s": Decimal(1), "ms": Decimal("0.001"), "m": Decimal(60)}[unit]
    return Figure(str(Decimal(time) * factor))


def _named(name: str) -> str:
    return NUMBER.replace("(", f"(?P<{name}>", 1)


_WITHIN = {"m": 3.0}
"""Maximum error in seconds of a time in this unit: minutes have one decimal."""

_STEP = re.compile(
    rf"(?:validation )?(?:step[: ])?{_COUNT}(?:/(?P<of>\d+))? "
    rf"(?:train_loss[: ] ?{_named('train')}|val_loss[: ] ?\S+ val_bpb[: ] ?{_named('val')})"
    rf"(?: (?:train_time|elapsed):? ?{_named('time')} ?(?P<unit>ms|m|s)\b)?"
)
_STOP = re.compile(
    rf"stopping_early: wallclock_cap train_time: ?{_named('time')}(?P<unit>ms) step: ?(?P<step>\d{{1,18}})"
)
_OUR_STOP = re.compile(rf"stopped at step (?P<step>\d{{1,18}}), elapsed {_named('time')} (?P<unit>s)")
_CALIBRATED = re.compile(rf"calibrated on .*, elapsed {_named('time')} s$")
"""Reading training data after the last step takes training time."""
_SCORING = re.compile(
    rf"(?P<label>[A-Za-z][\w -]*?)(?: stride:\d+)? val_loss[: ] ?{_named('loss')} val_bpb[: ] ?{_named('bpb')}"
    rf"(?:.*\beval_time: ?{_named('milliseconds')}ms| scored in {_named('seconds')} s)?"
)
_FLOAT = re.compile(r"pre-?_?quant|post[-_]ema|^float weights", re.IGNORECASE)
"""Labels for the weights before quantization."""
_TOTAL_SCORING = re.compile(rf"total_eval_time: ?{NUMBER}s")
_RANKS = re.compile(r"\d+ parameters, \d+ ranks on (\w+)")
_COMPRESSED = r"\b[\w.-]+\+[\w.-]+"
_COUNTS = tuple(
    (re.compile(pattern), names)
    for pattern, names in (
        (rf"^{_COUNT} parameters\b", ("num_params",)),
        (rf"^\d+ parameters, {_COUNT} ranks", ("world_size",)),
        (
            rf"^exported {_COUNT} bytes, with code {_COUNT} bytes {_COUNT} bytes",
            ("bytes_model", "bytes_code", "bytes_total"),
        ),
        (rf"\bmodel_params: ?{_COUNT}\b", ("num_params",)),
        (rf"\bworld_size: ?{_COUNT}\b", ("world_size",)),
        (rf"^seed: ?{_COUNT}\b", ("seed",)),
        (rf"^Code size: {_COUNT} bytes", ("bytes_code",)),
        (rf"^Serialized model {_COMPRESSED}: {_COUNT} bytes", ("bytes_model",)),
        (rf"^Total submission size {_COMPRESSED}: {_COUNT} bytes", ("bytes_total",)),
    )
)
