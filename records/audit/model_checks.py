"""Checks of artifact and script: what this project's code finds, and what the script says of itself."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from components.gpt import GPTConfig
from components.run_files import RUNS_NAME, SUMMARY_NAME
from records.audit.case import Case, FolderCheck, Loaded, is_count
from records.audit.contained import Ended, Limits
from records.audit.folder import Artifact, Run
from records.audit.hints import QUESTIONS
from records.audit.scorer_checks import scorer_arguments
from records.audit.verdicts import Failed, Look, Unknown

SAME_PRECISION_BPB = 1e-4
OTHER_PRECISION_BPB = 1e-3
"""How far a score may be from the claimed one, where the arithmetic is the run's and where it is not."""
INITIAL_LOSS_BELOW = 0.1
INITIAL_LOSS_ABOVE = 1.0
"""How far the loss of an untrained network may be from that of guessing evenly, in nats."""

_SCORE = Limits(seconds=6 * 3600)
"""On eight GPUs 600 s are allowed; here may be one, or none."""
_SUMMARY = f"scored/{RUNS_NAME}/version_0/{SUMMARY_NAME}"
_PRECISIONS = ("32-true", "bf16-true", "bf16-mixed")


# --- This project's word ---


def artifact_loads(case: Case, run: Run) -> str:
    """This project's reader loads it from the file alone: a network of the script's settings and the log's size."""
    artifact = _artifact_of(run)
    found = case.loaded(artifact)
    _must_be_readable(found, artifact)
    if found.settings is None:
        return f"{found.num_tensors} tensors, {found.num_params:,} values; the format does not say of what network"
    for name, value in found.settings.items():
        expected = case.reading.settings.get(f"model.{name}", value)
        if expected != value:
            raise Failed(f"{name} is {value} in {artifact.name} and {expected!s} in the script")
    said = [("the log", run.log and run.log.num_params), ("submission.json", _claimed_params(case, run))]
    for where, num_params in said:
        if num_params not in (None, found.num_params):
            raise Failed(f"{found.num_params:,} parameters, but {where} says {num_params:,}")
    return f"{found.num_tensors} tensors, a network of {found.num_params:,} parameters"


def score(case: Case, run: Run) -> str:
    """This project's reader and network score it on `--data` as claimed: within 1e-4, or 1e-3 in other arithmetic."""
    artifact = _artifact_of(run)
    arguments = _validate_arguments(case, run)
    public = artifact.suffix != ".golf"
    _must_be_readable(case.loaded(artifact), artifact)
    if public:
        arguments += _public_network(case.reading.settings)
    file = f"model{artifact.suffix}"
    ended = case.run_own(
        "score",
        [*arguments, f"--artifact={file}"],
        {file: artifact.data},
        _SCORE,
        [_SUMMARY],
        f"scoring {artifact.name}",
    )
    try:
        said = _compared(ended, case, run)
    except _NoScoreError as error:
        if public:
            raise Unknown(f"this project's network does not score it ({error})") from error
        raise Failed(str(error)) from error
    return said + ("; the network is the one that the script's settings describe" if public else "")


# --- The script's word ---


def compiles(case: Case) -> str:
    """The script is Python of this version; what it only unpacks and executes is read too, and not executed for it."""
    name, _ = case.script()
    reading = case.reading
    if reading.newer:
        raise Unknown(f"{_needs_newer_python()} ({reading.why_not})")
    if reading.why_not:
        raise Failed(f"{name}: {reading.why_not}")
    inside = [length for part, length in reading.lengths.items() if part]
    return name + (f", in it {len(inside)} texts of {sum(inside):,} bytes" if inside else "")


def imports(case: Case) -> str:
    """It can be imported, alone in a folder, without a network, with stand-ins for missing packages of kernels."""
    report = _imported(case)
    used = report.get("stand_ins")
    said = f"on this CPU in {_number(report, 'seconds'):.1f} s, the network refused"
    return said + (f"; stand-ins for {', '.join(map(str, used))}" if isinstance(used, list) and used else "")


def network(case: Case) -> str:
    """The script can build it on a CPU, and log and claims give its number of parameters."""
    report = _imported(case)
    if "num_params" not in report:
        raise Unknown(_why_no_network(report))
    num_params = int(_number(report, "num_params"))
    said = [("submission.json", case.submission.claims.top.get("num_params"))]
    said += [
        (f"the log of {run.name}".strip(), run.log.num_params) for run in case.submission.runs if run.log is not None
    ]
    for where, claimed in said:
        if claimed is not None and claimed != num_params:
            raise Failed(f"{num_params:,} parameters, but {where} says {claimed:,}")
    settings = report.get("settings")
    sizes = [
        f"{name} {str(settings[name])[:20]}"
        for name in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult", "vocab_size")
        if isinstance(settings, dict) and name in settings
    ]
    return f"{num_params:,} parameters; {', '.join(sizes)}"


def initial_loss(case: Case) -> str:
    """Untrained, the script's network guesses about evenly: no knowledge is hidden in the code."""
    report = _imported(case)
    settings = report.get("settings")
    if "initial_loss" not in report or not isinstance(settings, dict):
        raise Unknown(_why_no_network(report))
    loss, even = _number(report, "initial_loss"), math.log(max(1.0, _number(settings, "vocab_size")))
    if not even - INITIAL_LOSS_BELOW <= loss <= even + INITIAL_LOSS_ABOVE:
        raise Failed(f"{loss:.4f} nats before any training, guessing evenly is {even:.4f}")
    return f"{loss:.4f} nats, guessing evenly is {even:.4f}"


def script_scores(case: Case, run: Run) -> str:
    """The script's own `validate` gives the claimed score too; whatever it gives, `score recomputed` stands alone."""
    artifact = _artifact_of(run)
    if not case.reading.packed:
        raise Unknown("the script has no command that is known to score a file")
    arguments = ["validate", *_validate_arguments(case, run)[1:], "--artifact=model.golf"]
    ended = case.run_script("run", arguments, {"model.golf": artifact.data}, _SCORE, [_SUMMARY])
    try:
        return _compared(ended, case, run)
    except _NoScoreError as error:
        raise Failed(str(error)) from error


# --- Hints ---


def look_for(question: str) -> FolderCheck:
    """The check that shows where a script bears on one of `QUESTIONS`."""

    def look(case: Case) -> str:
        case.script()
        if case.reading.why_not:
            raise Unknown("the script could not be read")
        places = [f"{hint['place']}: {hint['why']}" for hint in case.reading.hints if hint["question"] == question]
        if places:
            raise Look("; ".join(map(str, places)))
        raise Unknown("nothing was seen by reading it, which shows little")

    look.__doc__ = f"Never; it shows the lines to look at. {QUESTIONS[question].__doc__}"
    return look


# --- What they share ---


class _NoScoreError(Exception):
    """A scoring that came to no result; the message says why."""


def _artifact_of(run: Run) -> Artifact:
    if run.artifact is None:
        raise Unknown("the folder holds no artifact of this run")
    return run.artifact


def _must_be_readable(found: Loaded, artifact: Artifact) -> None:
    if found.why_not and artifact.suffix == ".golf":
        raise Failed(found.why_not)
    if found.why_not:
        raise Unknown(f"not a format that this audit reads ({found.why_not})")


def _claimed_params(case: Case, run: Run) -> int | float | None:
    return run.claims.get("num_params", case.submission.claims.top.get("num_params"))


def _validate_arguments(case: Case, run: Run) -> list[str]:
    """What ``cli.py`` is told to score on: the data, this machine, and the run's or its script's windows and scorer."""
    if case.data is None:
        raise Unknown("no data was given; give --data")
    assert case.tokenizer is not None
    seq_len, stride, most = _windows(case, run)
    on_gpu = torch.cuda.is_available()
    precision = (run.record or {}).get("precision", case.reading.settings.get("trainer.precision"))
    return [
        *("validate", "--trainer.default_root_dir=scored"),
        *(f"--data.path={case.data.resolve()}", f"--data.tokenizer_path={case.tokenizer.resolve()}"),
        *(f"--scoring.seq_len={seq_len}", f"--scoring.stride={stride}"),
        f"--scoring.max_tokens={most}",
        *scorer_arguments(case, run),
        *("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto", "--model.compile=false"),
        f"--trainer.accelerator={'auto' if on_gpu else 'cpu'}",
        f"--trainer.precision={precision if on_gpu and precision in _PRECISIONS else '32-true'}",
    ]


def _windows(case: Case, run: Run) -> tuple[int, int, int]:
    """Targets of a window, from one to the next, and how many ids to score: of the run's record or its script.

    Any windows give a score in which each target counts once, so these may be the submission's word.
    """
    settings, record = case.reading.settings, run.record or {}
    of_script = settings.get("scoring.seq_len", settings.get("eval_seq_len", settings.get("train_seq_len")))
    seq_len = record.get("scoring_seq_len", of_script)
    stride = record.get("scoring_stride", settings.get("scoring.stride", settings.get("eval_stride")))
    most = record.get("scoring_max_tokens", settings.get("scoring.max_tokens", 0))
    if not all(map(is_count, (seq_len, stride, most))):
        raise Unknown("neither record nor script says how it scores (eval_seq_len or train_seq_len, and eval_stride)")
    return seq_len, stride, most


def _public_network(settings: Mapping[str, Any]) -> list[str]:
    """A public script's hyperparameters that this project's network has too."""
    known = [field.name for field in dataclasses.fields(GPTConfig) if field.name in settings]
    return [f"--model.{name}={settings[name]}" for name in known]


def _compared(ended: Ended, case: Case, run: Run) -> str:
    """A finished scoring beside the claim.

    Raises:
        Failed: they differ.
        Unknown: there is nothing to compare it with, or it is of a part of the text only.
        _NoScoreError: it did not finish.
    """
    if ended.stopped is not None or ended.code != 0 or _SUMMARY not in ended.kept:
        raise _NoScoreError(ended.last_line)
    try:
        found = json.loads(ended.kept[_SUMMARY])
        bpb, scored = _number(found, "val_bpb"), int(_number(found, "tokens_scored"))
    except (ValueError, RecursionError, Failed) as error:
        raise _NoScoreError("it left no score") from error
    precision, record = str(found.get("precision")), run.record or {}
    if scored != record.get("tokens_scored", scored):
        raise Unknown(
            f"{bpb:.6f} bits per byte on the {scored:,} targets of this data, where the run scored "
            f"{str(record['tokens_scored'])[:20]}"
        )
    claimed = run.claims.get("val_bpb")
    if claimed is None:
        raise Unknown(f"{bpb:.6f} bits per byte, and no claim to compare")
    said = f"{bpb:.6f} bits per byte recomputed in {precision}, claimed {claimed:.6f}"
    if not abs(bpb - claimed) <= (SAME_PRECISION_BPB if precision == record.get("precision") else OTHER_PRECISION_BPB):
        raise Failed(said)
    if most := _windows(case, run)[2]:
        raise Unknown(f"{said}, but both of the first {most:,} ids only")
    return said


def _imported(case: Case) -> Mapping[str, Any]:
    """What the script reported of its import.

    Raises:
        Failed: it cannot be imported.
        Unknown: this machine lacks what it needs.
    """
    case.script()
    if case.reading.newer:
        raise Unknown(_needs_newer_python())
    report = case.imported
    if "why_not" not in report:
        return report
    why, missing = str(report["why_not"])[:500], report.get("missing")
    if isinstance(missing, str) and missing.partition(".")[0] not in sys.stdlib_module_names:
        name = missing[:60]
        raise Unknown(f"it needs the package {name}, which is not installed here; install it and audit again")
    if _needs_gpu(why):
        raise Unknown(f"it needs a GPU, and this machine has none; audit it where there is one ({why})")
    raise Failed(why)


def _why_no_network(report: Mapping[str, Any]) -> str:
    why = str(report.get("no_network", "the script reported none"))[:500]
    return f"it needs a GPU, and this machine has none ({why})" if _needs_gpu(why) else why


def _needs_gpu(why: str) -> bool:
    return not torch.cuda.is_available() and any(word in why for word in ("CUDA", "NVIDIA", "cuda"))


def _needs_newer_python() -> str:
    version = ".".join(map(str, sys.version_info[:2]))
    return f"Python {version} cannot read it and Python 3.12 may; run the audit with that"


def _number(report: Mapping[str, Any], name: str) -> float:
    """A number out of a report that may hold anything."""
    value = report.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e18:
        raise Failed(f"{name} in the script's report is no number")
    return float(value)


HINTS: dict[str, Callable[[Case], str]] = {question: look_for(question) for question in QUESTIONS}
