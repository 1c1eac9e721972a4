"""The table of checks, and the audit: each of them made on one submission."""

from __future__ import annotations

from collections.abc import Callable

from records.audit import figure_checks, model_checks, scorer_checks
from records.audit.case import Case, Check
from records.audit.folder import Run
from records.audit.verdicts import Failed, Look, State, Unknown, Verdict, Word, printable

GROUPS: tuple[tuple[Check, ...], ...] = (
    (
        Check("files", Word.OURS, figure_checks.files),
        Check("submission.json", Word.OURS, figure_checks.submission_json),
        Check("code bytes", Word.OURS, figure_checks.code_bytes),
    ),
    (
        Check("total bytes", Word.OURS, of_run=figure_checks.total_bytes),
        Check("artifact loads", Word.OURS, of_run=model_checks.artifact_loads),
        Check("score recomputed", Word.OURS, of_run=model_checks.score),
        Check("logged bytes", Word.LOG, of_run=figure_checks.logged_bytes),
        Check("training seconds", Word.LOG, of_run=figure_checks.training_seconds),
        Check("scoring seconds", Word.LOG, of_run=figure_checks.scoring_seconds),
        Check("claims = log", Word.LOG, of_run=figure_checks.claims_are_the_logs),
        Check("trained on train", Word.RECORD, of_run=figure_checks.trained_on_train),
        Check("each target once", Word.RECORD, of_run=figure_checks.targets_once),
        Check("whole split", Word.RECORD, of_run=figure_checks.whole_split),
        Check("score before update", Word.RECORD, of_run=scorer_checks.scored_before_trained),
        Check("recorded scoring seconds", Word.RECORD, of_run=scorer_checks.recorded_scoring_seconds),
    ),
    (
        Check("seeds", Word.LOG, figure_checks.seeds),
        Check("means", Word.LOG, figure_checks.means),
        Check("significance", Word.LOG, figure_checks.significance),
        Check("script compiles", Word.OURS, model_checks.compiles),
        *(Check(f"look: {question}", Word.OURS, look) for question, look in model_checks.HINTS.items()),
        # Last: nothing of the script's runs before all that does not need it.
        Check("script imports", Word.SCRIPT, model_checks.imports),
        Check("network", Word.SCRIPT, model_checks.network),
        Check("initial loss", Word.SCRIPT, model_checks.initial_loss),
    ),
    (Check("script's own score", Word.SCRIPT, of_run=model_checks.script_scores),),
)
"""Groups of checks of the folder or of each run, in the order in which they are made."""

_MAX_DETAIL = 2000


def audit(case: Case, say: Callable[[str], None] = lambda name: None) -> list[Verdict]:
    """Make every check.

    Args:
        case: the submission.
        say: gets the name of each check before it is made.
    """
    verdicts = []
    for group in GROUPS:
        of_runs = group[0].of_run is not None
        for run in case.submission.runs if of_runs else (None,):
            for check in group:
                say(check.name if run is None else printable(f"{check.name}, {run.name}").removesuffix(", "))
                verdicts.append(judge(check, case, run))
    return verdicts


def judge(check: Check, case: Case, run: Run | None) -> Verdict:
    """Make one check, of the folder or of a run."""
    state = State.PASS
    try:
        if check.of_folder is not None:
            detail = check.of_folder(case)
        else:
            assert check.of_run is not None
            assert run is not None
            detail = check.of_run(case, run)
    except Failed as failed:
        state, detail = State.FAIL, str(failed)
    except Unknown as unknown:
        state, detail = State.UNKNOWN, str(unknown)
    except Look as look:
        state, detail = State.LOOK, str(look)
    name = run.name if run is not None else ""
    return Verdict(check.name, printable(name), state, check.word, printable(detail[:_MAX_DETAIL]))
