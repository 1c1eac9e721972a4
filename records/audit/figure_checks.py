"""Checks of what the folder says in figures: sizes, times, scores, seeds, and the run's record of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from components.artifact import MAX_BYTES
from components.scoring import Windows
from datamodules.shards import find_shards, open_shard
from records.audit.case import Case, are_counts, are_texts, is_count, need_log, recorded
from records.audit.claims import CREDITS, Claims, Number
from records.audit.folder import Run
from records.audit.script_text import imported_names
from records.audit.verdicts import Failed, Unknown
from records.figures import Figure, agree
from records.statistics import compare, describe
from records.train_log import Scoring, TrainLog

MAX_TRAIN_SECONDS = 600.0
MAX_SCORING_SECONDS = 600.0
TRACK = "10min_16mb"
NUM_GPUS = 8
GPU = "H100"
STEPS_OVER = 2
"""A run stops at the first step that ends beyond the budget: by less than so many of its mean steps it is not over."""
MOST_OVER = 0.01
"""Nor does a run of few, long steps get more than this share of the budget for it."""

SCORE_ROUNDING = 5e-4
SECONDS_ROUNDING = 0.5
"""The most that rounding may excuse, in nats or bits per byte and in seconds: three decimals, and whole seconds."""

_SCORES = ("val_loss", "val_bpb", "pre_quant_val_loss", "pre_quant_val_bpb")
_IN_RECORD = {
    **{name: name for name in (*_SCORES, "bytes_model", "num_params")},
    **{"steps": "step_stop", "train_seconds": "wallclock_seconds", "eval_seconds": "eval_time_seconds"},
}
"""What this project's records call the figures that must be in them as they are claimed."""


# --- Files and sizes ---


def files(case: Case) -> str:
    """README.md, submission.json, a script `train_gpt*.py` and a log are there, and all files are plain ones."""
    folder = case.submission
    missing = [] if folder.has_readme else ["README.md"]
    missing += [] if "submission.json" in folder.names else ["submission.json"]
    missing += [] if folder.script is not None else ["train_gpt.py"]
    missing += [] if folder.num_logs else ["a training log (*.log)"]
    wrong = [f"missing: {', '.join(missing)}"] if missing else []
    if wrong or folder.refused:
        raise Failed("; ".join([*wrong, *folder.refused]))
    return ", ".join(folder.names)


def submission_json(case: Case) -> str:
    """It can be read, what it gives is of its type, and the score is there; what else it lacks is named."""
    claims = case.submission.claims
    if case.submission.no_claims:
        raise Failed(case.submission.no_claims)
    wrong = list(claims.wrong)
    if "val_bpb" not in claims.top:
        wrong.append("val_bpb is missing")
    if wrong:
        raise Failed("; ".join(wrong))
    absent = [name for name in CREDITS if name not in claims.credits]
    given = f"score {claims.top['val_bpb']}, {len(claims.seeds)} seeds' results"
    return given + (f"; not given: {', '.join(absent)}" if absent else "")


def code_bytes(case: Case) -> str:
    """The script, and the Python beside it that it imports, have the size that is claimed."""
    counted = _counted_code(case)
    code = sum(map(len, counted.values()))
    claimed = case.submission.claims.top.get("bytes_code")
    lengths = [length for part, length in case.reading.lengths.items() if part]
    said = f"{code:,} bytes ({', '.join(map(str, counted))})"
    said += f", {sum(lengths):,} unpacked" if lengths else ""
    if claimed is None:
        return f"{said}, not claimed"
    if claimed == code:
        return said
    totals = [run.log.bytes_model + code for run in case.submission.runs if run.log and run.log.bytes_model is not None]
    if case.submission.claims.top.get("bytes_total") in totals:
        raise Unknown(f"{said}, claimed {claimed:,}; the claimed total has them as they are")
    raise Failed(f"{said}, submission.json says {claimed:,}")


def _counted_code(case: Case) -> Mapping[str, bytes]:
    """The script and the files beside it that it imports, directly or not."""
    name, _ = case.script()
    counted: dict[str, bytes] = {}
    todo, found = [name], {*case.reading.imports}
    while todo:
        counted[todo[-1]] = case.submission.code[todo[-1]]
        found |= imported_names(case.submission.code[todo.pop()].decode(errors="replace"))
        todo = [
            file
            for file in case.submission.code
            if file not in counted and Path(file).parts[0].removesuffix(".py") in found
        ]
    return counted


def total_bytes(case: Case, run: Run) -> str:
    """Artifact and code, counted from the files, are at most 16,000,000 bytes, and as many as claimed."""
    if run.artifact is None:
        raise Unknown("there is no artifact of this run to count")
    model, code = len(run.artifact.data), sum(map(len, _counted_code(case).values()))
    said = f"{model:,} ({run.artifact.name}) + {code:,} = {model + code:,} of {MAX_BYTES:,} bytes"
    if model + code > MAX_BYTES:
        raise Failed(said)
    if run.own_claims:
        for name, counted in (("bytes_model", (model,)), ("bytes_total", (model + code, model))):
            claimed = run.claims.get(name)
            if claimed is not None and claimed not in counted:
                raise Failed(f"{said}, but {name} is claimed to be {claimed:,}")
    return said


def logged_bytes(case: Case, run: Run) -> str:
    """By the log, artifact and code are at most 16,000,000 bytes, and as many as claimed."""
    log = need_log(run)
    model, total = log.bytes_model, log.bytes_total
    if total is None:
        raise Unknown("the log gives no total")
    said = f"{total:,} of {MAX_BYTES:,} bytes"
    here = sum(map(len, _counted_code(case).values())) if case.submission.script is not None else None
    possible = {total} if model is None else {model, total} if here is None else {model, total, model + here}
    if total > MAX_BYTES:
        if model is None or model > MAX_BYTES or (here is not None and model + here > MAX_BYTES):
            raise Failed(said)
        said += f" with the script that ran; the model alone is {model:,}"
        if here is None:
            raise Unknown(f"{said}, and there is no script here that may be smaller")
        said += f", with the script that is here {model + here:,}"
    claimed = run.claims.get("bytes_total") if run.own_claims else None
    if claimed is not None and claimed > MAX_BYTES:
        raise Failed(f"{claimed:,} are claimed, the log says {said}")
    if claimed is not None and claimed not in possible:
        raise Unknown(f"{said}, where {claimed:,} are claimed; both are under the cap")
    return said


# --- Times ---


def training_seconds(case: Case, run: Run) -> str:
    """The log shows at most 600 s on the track's hardware, or over it by less than two of the run's own mean steps."""
    log = need_log(run)
    seconds, step = _known(log.train_seconds), log.step_seconds or 0.0
    said = f"{seconds:.3f} s of {MAX_TRAIN_SECONDS:.0f} s"
    only_on_the_track(case, log, said)
    over = seconds - MAX_TRAIN_SECONDS
    if over <= 0:
        return said
    if over <= log.train_seconds_within:
        raise Unknown(f"{said}, but the log only gives tenths of minutes")
    said += f", over by {over:.3f} s or {over / step:.1f} mean steps of {step:.3f} s" if step else ""
    if not over < min(STEPS_OVER * step, MOST_OVER * MAX_TRAIN_SECONDS):
        raise Failed(said)
    return f"{said}: it stopped at the first step that ended beyond the budget"


def scoring_seconds(case: Case, run: Run) -> str:
    """The log shows at most 600 s for the scoring whose result is claimed, on the track's hardware."""
    log = need_log(run)
    scoring = claimed_scoring(run)
    seconds = _known(None if scoring is None else scoring.seconds)
    assert scoring is not None
    said = f"{seconds:.3f} s of {MAX_SCORING_SECONDS:.0f} s ({scoring.label})"
    others = [
        f"{other.label} {other.seconds:.3f} s" for other in log.scorings if other is not scoring and other.seconds
    ]
    said += f"; besides: {', '.join(others)}" if others else ""
    only_on_the_track(case, log, said)
    if seconds > MAX_SCORING_SECONDS:
        raise Failed(said)
    return said


def _known(seconds: float | None) -> float:
    if seconds is None:
        raise Unknown("the log does not say")
    return seconds


def only_on_the_track(case: Case, log: TrainLog, said: str) -> None:
    """The track's limits are of seconds on its hardware.

    Raises:
        Unknown: the run says that it used other hardware, or was for another track.
    """
    claims = case.submission.claims
    count = re.search(r"(\d{1,4})\s*[xX]", claims.hardware)
    other = None
    if claims.track and TRACK not in claims.track:
        other = f"the track {claims.track}"
    elif log.world_size is not None and log.world_size != NUM_GPUS:
        other = f"{log.world_size} x {'CPU' if log.device == 'cpu' else 'GPU'}"
    elif log.device == "cpu":
        other = "CPUs"
    elif claims.hardware and (GPU not in claims.hardware or (count and int(count[1]) != NUM_GPUS)):
        other = claims.hardware
    if other is not None:
        raise Unknown(f"{said}, on {other}, where the limit is for {NUM_GPUS} x {GPU} and the track {TRACK}")


# --- Figures ---


def claims_are_the_logs(case: Case, run: Run) -> str:
    """Scores, steps and seconds in submission.json are those of the log, as rounded, and of the run's record."""
    log = need_log(run)
    scoring = claimed_scoring(run)
    if not run.claims:
        raise Unknown("submission.json gives no results of this run")
    if not run.own_claims:
        if scoring is not None and agree(run.claims.get("val_bpb", math.nan), scoring.val_bpb, SCORE_ROUNDING):
            return f"val_bpb: this is the run whose score is claimed ({scoring.label})"
        raise Unknown("submission.json gives no results of single runs, and its own are not this one's; see means")
    claimed_params = run.claims.get("num_params")
    if claimed_params is not None and log.num_params not in (None, claimed_params):
        raise Unknown(f"the log is of another network: {log.num_params:,} parameters, claimed {claimed_params:,}")
    _compare_with_record(run)
    same: list[str] = []
    other: list[str] = []
    flattering: list[str] = []
    for name, said in _said_by(log, scoring).items():
        claimed = run.claims.get(name)
        if claimed is None or said is None:
            continue
        if agree(claimed, said, _most(name)):
            same.append(name)
        else:
            worse = name != "steps" and claimed < said
            (flattering if worse else other).append(f"{name} is claimed to be {claimed}, the log says {said}")
    if flattering:
        excuse = _evidence_elsewhere(case)
        raise (Unknown if excuse else Failed)("; ".join([*flattering, *other, *excuse]))
    if other:
        raise Unknown("; ".join(other) + (f"; the same: {', '.join(same)}" if same else ""))
    if not same:
        raise Unknown("claims and log have no figure in common")
    return ", ".join(same)


def _said_by(log: TrainLog, scoring: Scoring | None) -> dict[str, Number | None]:
    figures: dict[str, Number | None] = {"steps": log.step_stop}
    if not log.train_seconds_within:
        figures["train_seconds"] = log.train_seconds
    if scoring is not None:
        figures |= {"val_loss": scoring.val_loss, "val_bpb": scoring.val_bpb, "eval_seconds": scoring.seconds}
    if log.float_score is not None:
        figures |= {"pre_quant_val_loss": log.float_score.val_loss, "pre_quant_val_bpb": log.float_score.val_bpb}
    return figures


def _most(name: str) -> float:
    return 0 if name == "steps" else SECONDS_ROUNDING if name.endswith("seconds") else SCORE_ROUNDING


def claimed_scoring(run: Run) -> Scoring | None:
    """The log's scoring that has the claimed score, or else its last; a log may hold some that were no success."""
    if run.log is None:
        return None
    claimed = run.claims.get("val_bpb", math.nan)
    same = (scoring for scoring in run.log.scorings if agree(claimed, scoring.val_bpb, SCORE_ROUNDING))
    return next(same, run.log.final)


def _compare_with_record(run: Run) -> None:
    for name in _IN_RECORD.keys() & run.claims.keys():
        claimed = run.claims[name]
        said = (run.record or {}).get(_IN_RECORD[name], claimed)
        number = isinstance(said, int | float) and not isinstance(said, bool)
        if not number or not math.isclose(claimed, said, rel_tol=1e-9):
            raise Failed(f"{name} is claimed to be {claimed}, the run's record says {repr(said)[:60]}")


def _evidence_elsewhere(case: Case) -> list[str]:
    """What the submission itself says is missing here, so that a reviewer would ask for it first."""
    claims, folder = case.submission.claims, case.submission
    absent = [name for name in claims.folders if not any(f"/{name}" in f"/{file}" for file in folder.names)]
    said = [f"submission.json names {', '.join(map(str, absent))}, which is not here"] if absent else []
    if not claims.seeds and claims.num_seeds > folder.num_logs:
        said.append(f"it speaks of {claims.num_seeds} seeds, and here are logs of {folder.num_logs}")
    return said


def seeds(case: Case) -> str:
    """Seeds, their results and their logs are of each other, none twice and none left out."""
    claims = case.submission.claims
    results = sorted(claims.seeds)
    listed = results if claims.listed is None else sorted(claims.listed)
    if not listed:
        raise Unknown("submission.json lists no seeds")
    logs = sorted(run.seed for run in case.submission.runs if run.log is not None and run.seed is not None)
    said = f"seeds {listed}, results of {results}, logs of {logs}"
    if len(set(listed)) < len(listed) or (results and results != listed) or not set(logs) <= set(listed):
        raise Failed(said)
    if logs != listed:
        raise Unknown(f"there is no log of {', '.join(str(seed) for seed in listed if seed not in logs)}; {said}")
    return ", ".join(map(str, listed))


def means(case: Case) -> str:
    """The claimed score is the mean of the seeds' results, or of the logs' where no results of seeds are claimed."""
    claims = case.submission.claims
    compared = []
    for name in _SCORES:
        claimed = claims.top.get(name)
        if claimed is None:
            continue
        if any(name in results for results in claims.seeds.values()):
            compared.append(_mean_of_seeds(name, claimed, claims))
        elif not claims.seeds and case.submission.num_logs > 1 and name == "val_bpb":
            compared.append(_mean_of_logs(claimed, case))
    if not compared:
        raise Unknown("submission.json gives no results of single seeds")
    return ", ".join(compared)


def _mean_of_seeds(name: str, claimed: Number, claims: Claims) -> str:
    known = [results[name] for results in claims.seeds.values() if name in results]
    if len(known) < len(claims.seeds):
        raise Failed(f"{name} is not given for every seed")
    sample = describe(known)
    said = f"{name} is claimed to be {claimed}, the seeds' mean is {sample.mean:.8f}"
    if not agree(claimed, _rounded(sample.mean, known), SCORE_ROUNDING):
        raise (Failed if claimed < sample.mean else Unknown)(said)
    return f"{name} {sample.mean:.6f}" + (f" ± {sample.interval:.6f}" if sample.interval else "")


def _mean_of_logs(claimed: Number, case: Case) -> str:
    scores = [
        run.log.final.val_bpb for run in case.submission.runs if run.log is not None and run.log.final is not None
    ]
    one = [
        run.name
        for run in case.submission.runs
        if run.log and any(agree(claimed, s.val_bpb, SCORE_ROUNDING) for s in run.log.scorings)
    ]
    if not scores:
        raise Unknown("the logs give no score")
    mean = sum(scores) / len(scores)
    if agree(claimed, _rounded(mean, scores), SCORE_ROUNDING):
        return f"val_bpb {mean:.6f}, the logs' mean"
    if one:
        return f"val_bpb {claimed}, that of {one[0]} and no mean"
    said = f"val_bpb is claimed to be {claimed}, the logs say {', '.join(f'{score:g}' for score in scores)}"
    excuse = _evidence_elsewhere(case)
    raise (Failed if claimed < min(scores) and not excuse else Unknown)("; ".join([said, *excuse]))


def _rounded(mean: float, figures: Iterable[Number]) -> Figure:
    """A mean with the decimals of the figures that it is of; json leaves zeros at the end out, so of the longest."""
    return Figure(f"{mean:.{max(figure.decimals if isinstance(figure, Figure) else 0 for figure in figures)}f}")


def significance(case: Case) -> str:
    """Welch's test, made again, meets the rule and gives the claimed p (`--baseline`, or the claimed baseline)."""
    claims = case.submission.claims
    baseline = case.baseline or claims.baseline_losses
    if not baseline:
        raise Unknown("no baseline is named; give --baseline")
    losses = [results["val_loss"] for results in (claims.seeds.values() or [claims.top]) if "val_loss" in results]
    if not losses:
        raise Unknown("no seed's val_loss is given")
    comparison = compare(losses, baseline)
    claimed = claims.top.get("p_value")
    if not case.baseline and claimed is not None:
        recomputed = comparison.p_margin
        if recomputed is None or not math.isclose(claimed, recomputed, rel_tol=1e-3):
            raise Failed(f"p is claimed to be {claimed}, recomputed it is {recomputed}")
    if comparison.holds is None:
        raise Unknown(comparison.sentence())
    if not comparison.holds:
        raise Failed(comparison.sentence())
    return comparison.sentence()


# --- What the run read, by its own record ---


def trained_on_train(case: Case, run: Run) -> str:
    """By the run's record, no validation shard was trained on."""
    train, val, positions, ids = recorded(
        run, train_shards=are_texts, val_shards=are_texts, train_positions=are_counts, train_ids=is_count
    )
    strange = [name for name in train if not name.startswith("fineweb_train_") or name in val]
    if strange:
        raise Failed(f"trained on {', '.join(map(str, strange))}")
    if len(positions) != 2 or not positions[0] < positions[1]:
        raise Failed(f"the positions {positions} of the stream are none")
    return f"ids [{positions[0]:,}, {positions[1]:,}) of a stream of {ids:,} in {len(train)} train shards"


def targets_once(case: Case, run: Run) -> str:
    """By the run's record, as many targets and windows were scored as the text has, no more, no fewer."""
    ids, scored, windows, seq_len, stride, shards = recorded(
        run,
        val_ids=is_count,
        tokens_scored=is_count,
        windows=is_count,
        scoring_seq_len=is_count,
        scoring_stride=is_count,
        val_shards=are_texts,
    )
    if not stride or not ids:
        raise Failed(f"{ids:,} ids and a stride of {stride:,} make no windows")
    due = len(Windows(ids - 1, seq_len, stride))
    if (scored, windows) != (ids - 1, due):
        raise Failed(f"{scored:,} scores in {windows:,} windows, where {ids - 1:,} targets make {due:,} windows")
    strange = [name for name in shards if not name.startswith("fineweb_val_")]
    if strange:
        raise Failed(f"scored on {', '.join(map(str, strange))}")
    return f"{scored:,} targets in {windows:,} windows"


def whole_split(case: Case, run: Run) -> str:
    """By the run's record, all of the validation split in `--data` was scored."""
    ids, most = recorded(run, val_ids=is_count, scoring_max_tokens=is_count)
    if most:
        raise Unknown(f"only the first {ids:,} validation ids were to be scored")
    if case.data is None:
        raise Unknown("no data was given; give --data")
    held = sum(len(open_shard(path)) for path in find_shards(case.data, "val"))
    if held != ids:
        raise Failed(f"{ids:,} ids were scored, the validation split holds {held:,}")
    return f"all {held:,} validation ids"
