"""Checks of how a run was scored: whether it trained on the text that it scored, on what, and how long it took.

Any settings of this project's scorers give a score in which each target counts once and is trained on only afterward,
so the settings to score with again may be the submission's word. The scorer's code is this project's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from records.audit.case import Case, are_counts, is_count, need_record, recorded
from records.audit.figure_checks import MAX_SCORING_SECONDS, SECONDS_ROUNDING, claimed_scoring, only_on_the_track
from records.audit.folder import Run
from records.audit.hints import PLAIN_SCORER
from records.audit.verdicts import Failed, Unknown
from records.figures import agree
from records.train_log import TrainLog

TRAINING_SCORER = "components.test_time_training.ScoreFirstTraining"
_TRAINING = "test_time_training"
_SETTINGS = {"chunk_tokens": int, "epochs": int, "lr": float, "momentum": float, "batch_seqs": int}


def scored_before_trained(case: Case, run: Run) -> str:
    """By the run's record, test-time training trained on each chunk once, in order, and only after it was scored."""
    record = need_record(run)
    scorer = _scorer(case, run)
    if scorer == PLAIN_SCORER:
        if _TRAINING in record:
            raise Failed(f"the run's record says that {scorer} scored it, and what it trained on")
        return "the scorer trains on nothing"
    settings = _settings(case, run)
    spans = record[_TRAINING].get("trained")
    if not isinstance(spans, list) or not all(are_counts(span) and len(span) == 3 for span in spans):
        raise Failed("what was trained on and when, in the run's record, is not what it should be")
    ids, seq_len = recorded(run, val_ids=is_count, scoring_seq_len=is_count)
    num_targets, chunk_tokens = ids - 1, settings["chunk_tokens"]
    for first, end, scored in spans:
        if not first < end <= num_targets:
            raise Failed(f"trained on the targets [{first:,}, {end:,}) of {num_targets:,}, which are none")
        if not end <= scored <= num_targets:
            raise Failed(f"trained on the targets [{first:,}, {end:,}) once those before {scored:,} were scored")
    for (_, before, _), (first, end, _) in itertools.pairwise(spans):
        if first < before:
            raise Failed(f"trained on the targets [{first:,}, {end:,}) after those up to {before:,}")
    if chunk_tokens < max(1, seq_len):
        raise Failed(f"chunks of {chunk_tokens:,} targets hold no sequence of {seq_len:,}")
    due = -(-num_targets // chunk_tokens) - 1 if settings["epochs"] else 0  # after the last chunk, nothing is scored
    if len(spans) != due:
        raise Failed(
            f"trained {len(spans):,} times, where {num_targets:,} targets in chunks of {chunk_tokens:,} make {due:,}"
        )
    total = sum(end - first for first, end, _ in spans)
    return f"trained {due:,} times, on {total:,} of {num_targets:,} targets, each time on what had been scored"


def recorded_scoring_seconds(case: Case, run: Run) -> str:
    """By the run's record, the scoring, test-time training included, took at most 600 s on the track's hardware."""
    [seconds] = recorded(run, eval_time_seconds=_is_number)
    said = f"{seconds:.3f} s of {MAX_SCORING_SECONDS:.0f} s"
    logged = claimed_scoring(run)
    if logged is not None and logged.seconds is not None and not agree(seconds, logged.seconds, SECONDS_ROUNDING):
        raise Failed(f"{said}, but the log says {logged.seconds:.3f} s")
    only_on_the_track(case, run.log or TrainLog(), said)
    if seconds > MAX_SCORING_SECONDS:
        raise Failed(said)
    return said


def scorer_arguments(case: Case, run: Run) -> list[str]:
    """What tells this project's ``validate`` to score as the run did.

    Raises:
        Failed: record and script do not name the same scorer and settings.
        Unknown: the scorer is none of this project's.
    """
    if _scorer(case, run, PLAIN_SCORER) == PLAIN_SCORER:
        return []
    settings = _settings(case, run)
    return [f"--scorer={TRAINING_SCORER}", *(f"--scorer.{name}={value}" for name, value in settings.items())]


def _scorer(case: Case, run: Run, otherwise: str | None = None) -> str:
    """The class path of the run's scorer."""
    by_script = case.reading.settings.get("scorer.class_path") if case.reading.packed else None
    by_record = (run.record or {}).get("scorer")
    if by_script is not None and by_record is not None and by_script != by_record:
        raise Failed(
            f"the scorer is {str(by_record)[:100]} in the run's record and {str(by_script)[:100]} in the script"
        )
    scorer = by_record or by_script or otherwise
    if scorer is None:
        raise Unknown("neither the run's record nor the script says what scored it")
    if scorer not in (PLAIN_SCORER, TRAINING_SCORER):
        raise Unknown(f"it was scored by {str(scorer)[:100]}, which this audit does not know")
    return str(scorer)


def _settings(case: Case, run: Run) -> Mapping[str, Any]:
    """The settings with which the run was trained on its text: of its record, and the same in its script."""
    by_script = {name: case.reading.settings.get(f"scorer.{name}") for name in _SETTINGS}
    settings: object = by_script
    if run.record is not None:
        settings = run.record.get(_TRAINING)
    if not isinstance(settings, dict):
        raise Failed(f"{TRAINING_SCORER} scored it, and the run's record does not say what it trained on")
    for name, kind in _SETTINGS.items():
        value, expected = settings.get(name), by_script[name]
        if not (is_count(value) if kind is int else _is_number(value)):
            raise Failed(f"{name} of {TRAINING_SCORER} is {str(value)[:60]}, which it cannot be")
        if expected not in (None, value):
            raise Failed(f"{name} is {value} in the run's record and {expected} in the script")
    return {name: settings[name] for name in _SETTINGS}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
