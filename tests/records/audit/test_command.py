import json
from pathlib import Path

import pytest

from components.errors import UserError
from records import audit
from records.audit.table import END, README, table, with_table
from tests.records.audit.support import edit_json


def light(folder: Path) -> None:
    """Without what takes a child: no script, no artifact."""
    (folder / "model_seed42.golf").unlink()
    (folder / "train_gpt.py").write_text("x = 1\n")
    edit_json("submission.json", bytes_code=6)(folder)


def test_the_command_says_what_is_contained_first_and_writes_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light(folder)
    audit.main([str(folder), "--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")])
    output, progress = capsys.readouterr()
    assert progress.startswith(("Contained by ", "NOT CONTAINED: "))
    assert output.startswith("submission: 0 FAIL, ")
    assert json.loads((tmp_path / "a.json").read_text())["counts"]["FAIL"] == 0
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")


def test_a_failure_is_exit_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    light(folder)
    (folder / "README.md").unlink()
    with pytest.raises(SystemExit) as exited:
        audit.main([str(folder)])
    assert exited.value.code == 1
    assert "FAIL: files: missing: README.md\n" in capsys.readouterr().out


def test_what_a_user_can_mend_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        audit.main([str(folder / "none")])
    with pytest.raises(UserError, match="There is no tokenizer"):
        audit.main([str(folder), f"--data={folder}"])
    with pytest.raises(UserError, match="no val shards"):
        audit.main([str(folder), f"--data={folder}", f"--tokenizer={folder / 'README.md'}"])


def test_the_readme_has_todays_table() -> None:
    text = README.read_text()
    assert table() in text
    assert with_table(text) == text
    assert text.count(END) == 1
