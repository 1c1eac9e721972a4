"""Scripts and folders that lie: whatever they do, this project's word on the artifact stays what it is."""

import json
from pathlib import Path

import pytest

from records.audit import model_checks
from records.audit.checks import audit, judge
from records.audit.contained import Limits
from records.audit.verdicts import State, Verdict, Word
from tests.records.audit.support import (
    CHECKS,
    IDS,
    Edit,
    case_of,
    edit_json,
    edit_log,
    edit_result,
    remove,
    verdict_of,
    verdicts_of,
)


def test_a_sound_submission_passes_every_line_that_is_not_the_scripts(folder: Path, data: Path) -> None:
    edit_json("submission.json", baseline_val_losses=[70, 70.01])(folder)
    verdicts = verdicts_of(folder, data)
    others = {v.check: (v.state, v.detail) for v in verdicts.values() if v.state != State.PASS}
    assert others.pop("network")[0] == State.FAIL  # the log is of the artifact's network, not of the script's
    assert "one seed" in others.pop("significance")[1]
    assert "has no command that is known" in others.pop("script's own score")[1]
    assert {name.partition(":")[0] for name in others} == {"look"}
    assert all("nothing was seen" in detail for _, detail in others.values())


FORGED = {"val_bpb": 0.5, "val_loss": 0.5, "tokens_scored": 699, "precision": "32-true"}
REPORT = {"seconds": 0.1, "settings": {"vocab_size": 1024}, "num_params": 65536, "initial_loss": 6.93, "num_tensors": 9}


def claim_half(folder: Path) -> None:
    """Claims, log and record of half a bit per byte."""
    for edit in (
        edit_json("submission.json", val_bpb=0.5, val_loss=0.5),
        edit_result(val_bpb=0.5, val_loss=0.5),
        edit_json("run_seed42.json", val_bpb=0.5, val_loss=0.5),
        edit_log("artifact", "artifact val_loss 0.50000000 val_bpb 0.50000000 scored in 70.287 s"),
    ):
        edit(folder)


def better_score_everywhere(folder: Path) -> None:
    """Claims, log and record agree on a score that the artifact does not reach."""
    record = json.loads((folder / "run_seed42.json").read_text())
    better = record["val_bpb"] - 0.01
    edit_json("run_seed42.json", val_bpb=better)(folder)
    edit_result(val_bpb=better)(folder)
    edit_log("artifact", f"artifact val_loss {record['val_loss']:.8f} val_bpb {better:.8f} scored in 70.287 s")(folder)
    edit_json("submission.json", val_bpb=better)(folder)


def test_a_score_that_all_words_agree_on_is_still_scored(folder: Path, data: Path) -> None:
    better_score_everywhere(folder)
    assert verdict_of("claims = log", folder).state == State.PASS
    verdict = verdict_of("score recomputed", folder, data)
    assert verdict.state == State.FAIL
    assert "recomputed in 32-true, claimed" in verdict.detail


@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (edit_json("run_seed42.json", tokens_scored=5), "targets of this data, where the run scored 5"),
        (edit_result(val_bpb=None), "and no claim to compare"),
        pytest.param(
            edit_json("run_seed42.json", scoring_max_tokens=IDS),
            f"but both of the first {IDS} ids only",
            marks=pytest.mark.slow,
        ),
        (remove("run_seed42.json"), "neither record nor script says how it scores"),
        (remove("model_seed42.golf"), "holds no artifact"),
    ],
)
def test_a_score_that_decides_nothing_is_said(spoil: Edit, detail: str, folder: Path, data: Path) -> None:
    spoil(folder)
    verdict = verdict_of("score recomputed", folder, data)
    assert verdict.state == State.UNKNOWN, verdict
    assert detail in verdict.detail


WRITES_A_SCORE = f"""
import json, os
name = "train_gpt"
os.makedirs("scored/lightning_logs/version_0", exist_ok=True)
with open("scored/lightning_logs/version_0/summary.json", "w") as file:
    json.dump({FORGED!r}, file)
with open("result.json", "w") as file:
    json.dump({REPORT!r}, file)
print(json.dumps({REPORT!r}), flush=True)
"""


def leave_at_once(folder: Path) -> None:
    """It prints what the audit waits for, writes a score where the audit will look, and leaves."""
    (folder / "train_gpt.py").write_text(f"{WRITES_A_SCORE}\nos._exit(0)\n")


def score_beforehand(folder: Path) -> None:
    """The folder already holds a score, and modules of the project's names that would write one."""
    scored = folder / "scored" / "lightning_logs" / "version_0"
    scored.mkdir(parents=True)
    (scored / "summary.json").write_text(json.dumps(FORGED))
    (folder / "result.json").write_text(json.dumps(REPORT))
    for name in ("cli.py", "sitecustomize.py", "usercustomize.py", "torch.py"):
        (folder / name).write_text(WRITES_A_SCORE + "os._exit(0)\n")
    (folder / "components").mkdir()
    (folder / "components" / "__init__.py").write_text(WRITES_A_SCORE)


def patch_torch(folder: Path) -> None:
    """Reading any file gives what the forger likes, in the script's own process."""
    (folder / "train_gpt.py").write_text(
        f"import sys, torch\ntorch.load = lambda *a, **k: {{}}\nsys.modules['components.artifact'] = torch\n"
        f"{WRITES_A_SCORE}"
    )


def steal_the_secret(folder: Path) -> None:
    """It takes the secret out of the frames around it, reports what it likes, and leaves as if all were done."""
    (folder / "train_gpt.py").write_text(
        f"""{WRITES_A_SCORE}
import sys
frame = sys._getframe()
while "secret" not in frame.f_globals:
    frame = frame.f_back
os.write(int(os.environ["REPORT"]), (json.dumps([frame.f_globals["secret"], {REPORT!r}]) + "\\n").encode())
os._exit(0)
"""
    )


def pose_as_ours(folder: Path) -> None:
    """It looks like one of this project's scripts, and its own validate writes the claimed score."""
    (folder / "train_gpt.py").write_text(
        "CONFIG = 'model: {vocab_size: 1024}'\nREADABLE = {}\nREADABLE['a.py'] = ''\n"
        f"{WRITES_A_SCORE}\nos._exit(0)\n"
    )


FORGERIES = [leave_at_once, score_beforehand, patch_torch, steal_the_secret, pose_as_ours]


@pytest.mark.parametrize("forge", FORGERIES)
def test_no_forgery_changes_what_this_project_finds(forge: Edit, folder: Path, data: Path) -> None:
    claim_half(folder)
    forge(folder)
    verdicts = {verdict.check: verdict for verdict in audit(case_of(folder, data))}
    score = verdicts["score recomputed"]
    assert (score.state, score.word) == (State.FAIL, Word.OURS)
    assert "claimed 0.500000" in score.detail
    assert "0.500000 bits" not in score.detail
    assert verdicts["artifact loads"].state == State.PASS  # and of the artifact's own tensors, not of nine
    assert not verdicts["artifact loads"].detail.startswith("9 tensors")
    forged = [v for v in verdicts.values() if "0.500000 bits" in v.detail or v.detail.startswith("65,536 parameters")]
    assert {verdict.word for verdict in forged} <= {Word.SCRIPT}


def test_a_script_that_leaves_without_a_report_has_not_been_imported(folder: Path) -> None:
    leave_at_once(folder)
    case = case_of(folder)
    for line in ("script imports", "network", "initial loss"):
        verdict = judge(CHECKS[line], case, None)
        assert verdict.state == State.FAIL
        assert "it ended without a report" in verdict.detail


def test_a_forged_report_is_the_scripts_word_and_no_more(folder: Path) -> None:
    steal_the_secret(folder)
    verdict = verdict_of("network", folder)
    assert verdict.word == Word.SCRIPT
    assert "65,536 parameters" in verdict.detail  # taken at its word, and said to be that


def test_an_artifact_that_is_swapped_after_it_was_read_changes_nothing(folder: Path, data: Path) -> None:
    case = case_of(folder, data)
    size = (folder / "model_seed42.golf").stat().st_size
    remove("model_seed42.golf")(folder)
    (folder / "model_seed42.golf").write_bytes(b"another")
    [run] = case.submission.runs
    verdicts = [judge(CHECKS[line], case, run) for line in ("total bytes", "artifact loads", "score recomputed")]
    assert [verdict.state for verdict in verdicts] == [State.PASS] * 3
    assert f"{size:,} (model_seed42.golf)" in verdicts[0].detail


REPORTS_NONSENSE = """
import json, os, sys
frame = sys._getframe()
while "secret" not in frame.f_globals:
    frame = frame.f_back
report = {report}
os.write(int(os.environ["REPORT"]), (json.dumps([frame.f_globals["secret"], report]) + "\\n").encode())
os._exit(0)
"""


@pytest.mark.parametrize(
    "report",
    [
        "{'num_params': 'many', 'settings': 7, 'seconds': []}",
        "{'num_params': 1e400, 'initial_loss': -1e400, 'settings': {'vocab_size': -5}, 'seconds': None}",
        "{'why_not': ['\\x1b[2J'], 'missing': 5}",
        "{'stand_ins': {'a': 1}, 'seconds': True}",
        "7",
    ],
)
def test_a_report_of_any_form_makes_verdicts_and_no_crash(report: str, folder: Path) -> None:
    (folder / "train_gpt.py").write_text(REPORTS_NONSENSE.replace("{report}", report))
    case = case_of(folder)
    for line in ("script imports", "network", "initial loss"):
        verdict = judge(CHECKS[line], case, None)
        assert verdict.state in (State.FAIL, State.UNKNOWN)
        assert "\x1b" not in verdict.detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("while True: print('x' * 1_000_000)", "printed more than"),
        ("while True: pass", "took more than 1 s"),
        ("x = [b'1' * 1_000_000 for _ in range(10**9)]", "emory"),  # of the process, or of all of them together
    ],
)
def test_a_script_that_would_wear_the_audit_down_fails(
    text: str, detail: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(seconds=1 if "pass" in text else 60, memory_bytes=1 << 29)
    monkeypatch.setattr("records.audit.case._IMPORT", limits)
    (folder / "train_gpt.py").write_text(text + "\n")
    verdict = verdict_of("script imports", folder)
    assert verdict.state == State.FAIL
    assert detail in verdict.detail


def test_scoring_has_limits_too(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "_SCORE", Limits(seconds=0.3))
    case = case_of(folder, data)
    verdict = judge(CHECKS["score recomputed"], case, case.submission.runs[0])
    assert (verdict.state, verdict.detail) == (State.FAIL, "took more than 0.3 s")


def test_names_and_texts_of_the_folder_cannot_drive_a_terminal(folder: Path) -> None:
    (folder / "evil\x1b[2J\n.md").write_text("x")
    (folder / "model_seed42.golf").unlink()
    (folder / "model\x9b1m_seed42.golf").write_bytes(b"x")
    edit_json("submission.json", hardware="\x1b]0;owned\x07 1 x A100", track="\u202e10min_16mb")(folder)
    (folder / "train_gpt.py").write_text("raise ValueError('\\x1b[31m' + 'no')\n")
    verdicts: list[Verdict] = audit(case_of(folder))
    for verdict in verdicts:
        assert (verdict.name + verdict.detail).isprintable()
    assert "evil\\x1b[2J\\n.md" in verdicts[0].detail
