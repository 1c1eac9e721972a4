"""The commands' help, and what a mistake in a setting says."""

from pathlib import Path

import pytest

from cli import main
from tests.support import ROOT, run

RECORD = f"--config={ROOT / 'configs' / 'record_10l.yaml'}"


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments])
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--modle.num_layers=3", "There is no setting modle.num_layers; did you mean model.num_layers."),
        ("--model.num_layer=3", "There is no setting model.num_layer; did you mean model.num_layers."),
        ("--qqqqqq=3", "There is no setting qqqqqq; cli.py fit --help lists them."),
        ("--model.num_layers=many", "model.num_layers is many, which is not of type int; correct it."),
        ("--scorer=Nobody", "There is no class Nobody for scorer; cli.py fit --help lists the classes."),
    ],
)
def test_a_mistake_in_a_setting_is_one_sentence(
    argument: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])
    assert complaint(capsys, RECORD, argument) == sentence


def test_a_mistake_in_a_file_names_the_nearest_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cli.py"])
    (tmp_path / "mine.yaml").write_text("clock:\n  max_second: 3\n")
    sentence = complaint(capsys, RECORD, f"--config={tmp_path / 'mine.yaml'}")
    assert sentence == "There is no setting clock.max_second; did you mean clock.max_seconds."


def test_the_help_of_the_program_needs_no_torch() -> None:
    result = run("-X", "importtime", "cli.py", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: cli.py {fit,validate}")
    assert result.stdout.count("python cli.py ") >= 4  # three examples, and where to read on
    assert " torch" not in result.stderr
    without = run("cli.py")
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr == result.stdout


def test_the_help_of_a_command_begins_with_what_people_change() -> None:
    text = run("cli.py", "fit", "--help").stdout
    assert text.splitlines()[0] == "usage: cli.py fit --config FILE [--config FILE ...] [--SECTION.SETTING VALUE ...]"
    places = [text.index(option) for option in ("--data.path ", "--model.num_layers ", "--clock.max_seconds ")]
    assert [*places, text.index("--trainer.accelerator ")] == sorted([*places, text.index("--trainer.accelerator ")])
