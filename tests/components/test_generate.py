"""The command that lets an exported model write: its tokenizer, its stream of text, and its errors."""

import shutil
from pathlib import Path

import pytest

from components.errors import UserError
from components.generate import decoded, find_tokenizer, main
from components.tokenizer import load_tokenizer
from tests.support import FinishedRun, run


def test_a_run_s_model_continues_a_prompt_with_the_run_s_own_tokenizer(
    finished_run: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(finished_run.logs / "model.golf"), "--prompt", "The list", "--max-tokens", "20"]
    main([*arguments, "--num-samples", "2", "--seed", "5"])
    first, second = capsys.readouterr().out.split("---\n")
    assert first.startswith("The list")
    assert first != second
    main([*arguments, "--seed", "6"])
    assert capsys.readouterr().out == second  # each sample has a seed of its own


def test_the_command_needs_nothing_but_the_artifact_and_the_tokenizer_beside_it(
    finished_run: FinishedRun, tmp_path: Path
) -> None:
    shutil.copy(finished_run.logs / "model.golf", tmp_path)
    shutil.copy(finished_run.data / "tokenizer.model", tmp_path)
    result = run("-m", "components.generate", str(tmp_path / "model.golf"), "--prompt=To", "--max-tokens=5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("To")


def test_one_error_sentence_without_a_tokenizer(finished_run: FinishedRun, tmp_path: Path) -> None:
    artifact = tmp_path / "model.golf"
    shutil.copy(finished_run.logs / "model.golf", artifact)
    result = run("-m", "components.generate", str(artifact))
    assert result.returncode == 1
    assert result.stderr == (
        f"error: There is no tokenizer beside {artifact}, and no config.yaml that names one; give it with "
        "--tokenizer.\n"
    )
    for name in ("a.model", "b.model"):  # which of the two is not ours to guess
        shutil.copy(finished_run.data / "tokenizer.model", tmp_path / name)
    assert run("-m", "components.generate", str(artifact)).stderr == result.stderr


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--max-tokens=0", "0 is not a positive number"),
        ("--top-k=-1", "-1 is not a positive number"),
        ("--temperature=nan", "nan is not 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(
    finished_run: FinishedRun, option: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(finished_run.logs / "model.golf"), option])
    assert complaint in capsys.readouterr().err


def test_text_is_shown_as_soon_as_its_characters_are_whole(finished_run: FinishedRun) -> None:
    tokenizer = load_tokenizer(finished_run.data / "tokenizer.model")
    text = "a \N{SNOWMAN} and more"  # the snowman is three byte tokens
    ids = tokenizer.encode(text)
    pieces = list(decoded(tokenizer, ids))
    assert "".join(pieces) == text
    assert len(pieces) == len(ids) - 2 + 1
    assert find_tokenizer(finished_run.logs / "model.golf") == finished_run.data / "tokenizer.model"


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "data: {}", "data: {tokenizer_path: null}", "a: b: c", "a: 2001-99-99", "\udcff"]
)
def test_a_foreign_configuration_names_no_tokenizer(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="There is no tokenizer beside"):
        find_tokenizer(tmp_path / "model.golf")
