import os
from pathlib import Path

import pytest

from records.audit import folder as folder_module
from records.audit.folder import Submission, read_folder

STOP = "stopping_early: wallclock_cap train_time: {}ms step: {}/20000\n"
SCORE = "quantized val_loss:2.5 val_bpb:{} eval_time:1000ms\n"


def write(folder: Path, files: dict[str, str]) -> Submission:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_folder(folder)


def runs_of(submission: Submission) -> list[tuple[str, float | None]]:
    return [(run.name, run.log.train_seconds if run.log else None) for run in submission.runs]


def test_logs_artifacts_and_records_are_put_together_by_their_seeds(tmp_path: Path) -> None:
    files = {
        "train_seed42.log": STOP.format(1000, 10),
        "train_seed7.log": STOP.format(2000, 10),
        "model_seed42.golf": "a",
        "model_seed7.golf": "b",
        "run_seed7.json": '{"windows": 3}',
        "submission.json": '{"seed_results": {"7": {"val_bpb": 1.5}, "9": {"val_bpb": 1.25}}}',
    }
    submission = write(tmp_path, files)
    assert runs_of(submission) == [("seed 7", 2.0), ("seed 42", 1.0)]  # of seed 9 there is nothing but a claim
    seven, forty_two = submission.runs
    assert seven.artifact is not None
    assert (seven.artifact.data, seven.record, seven.claims) == (b"b", {"windows": 3}, {"val_bpb": 1.5})
    assert (forty_two.record, forty_two.claims, forty_two.own_claims) == (None, {}, False)


def test_a_folder_of_one_run_needs_no_seed(tmp_path: Path) -> None:
    submission = write(
        tmp_path, {"train.log": STOP.format(1000, 10), "model.ptz": "a", "submission.json": '{"val_bpb": 1}'}
    )
    [run] = submission.runs
    assert (run.name, run.seed, run.claims, run.own_claims) == ("", None, {"val_bpb": 1}, True)
    assert run.log is not None
    assert run.artifact is not None


def test_the_same_log_twice_is_one_and_a_later_scoring_belongs_to_its_seed(tmp_path: Path) -> None:
    files = {
        "train.log": STOP.format(1000, 10) + SCORE.format("1.2"),
        "train_seed42.log": STOP.format(1000, 10) + SCORE.format("1.2"),
        "later/ttt_seed42.log": SCORE.format("1.1").replace("quantized", "quantized_ttt"),
    }
    [run] = write(tmp_path, files).runs
    assert (run.name, run.seed) == ("seed 42", 42)
    assert run.log is not None
    assert [scoring.val_bpb for scoring in run.log.scorings] == [1.2, 1.1]


def test_two_runs_of_one_seed_go_by_their_files(tmp_path: Path) -> None:
    files = {f"train_v{i}.txt": "seed:1337\n" + STOP.format(1000 + i, 10) for i in (0, 1)}
    submission = write(tmp_path, {**files, "requirements.txt": "torch\n"})
    assert runs_of(submission) == [("train_v0.txt", 1.0), ("train_v1.txt", 1.001)]
    assert submission.num_logs == 2


def test_an_artifact_of_no_run_is_none_the_less_checked(tmp_path: Path) -> None:
    files = {"a.golf": "a", "b.golf": "b", "train_seed1.log": STOP.format(1000, 10)}
    assert [run.name for run in write(tmp_path, files).runs] == ["seed 1", "a.golf", "b.golf"]


def test_the_script_is_the_plain_one_and_other_code_stays_beside_it(tmp_path: Path) -> None:
    submission = write(tmp_path, {"train_gpt_human.py": "y", "train_gpt.py": "x", "tools/prepare.py": "z"})
    assert submission.script == ("train_gpt.py", b"x")
    assert submission.code.keys() == {"train_gpt_human.py", "train_gpt.py", "tools/prepare.py"}


def test_links_pipes_and_huge_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(folder_module._KINDS, ".md", 10)
    (tmp_path / "model.golf").symlink_to("/dev/zero")
    (tmp_path / "linked").symlink_to("/etc")
    os.mkfifo(tmp_path / "train.log")
    submission = write(tmp_path, {"README.md": "x" * 11})
    assert set(submission.refused) == {
        "model.golf is a link",
        "linked is a link",
        "train.log is no plain file",
        "README.md is larger than 10 bytes",
    }
    assert submission.names == ()


def test_so_many_files_are_no_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_MAX_FILES", 3)
    submission = write(tmp_path, {f"{i}.bin": "" for i in range(9)})
    assert submission.refused == ("more than 3 files",)


def test_what_is_in_the_folder_is_read_once(tmp_path: Path) -> None:
    submission = write(tmp_path, {"model.golf": "first", "train_gpt.py": "x = 1\n"})
    (tmp_path / "model.golf").write_text("second")
    (tmp_path / "train_gpt.py").unlink()
    [run] = submission.runs
    assert run.artifact is not None
    assert run.artifact.data == b"first"
    assert submission.script == ("train_gpt.py", b"x = 1\n")
