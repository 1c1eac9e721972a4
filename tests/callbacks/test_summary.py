"""summary.json: what callbacks say, what never happened, and the surroundings."""

import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import Reporter
from callbacks.summary import RunSummary
from cli import main
from tests.callbacks.support import small_module, trainer_of
from tests.support import NARROW, FinishedRun, fit_arguments, summary_of


class Speaker(Reporter):
    """A reporter with something to say."""

    def __init__(self, facts: dict[str, Any], sentences: list[str]) -> None:
        self.facts, self.sentences = facts, sentences

    def summary(self, trainer: Any) -> dict[str, Any]:
        return self.facts

    def missed(self, trainer: Any) -> list[str]:
        return self.sentences

    def describe(self, trainer: Any) -> list[str]:
        return [f"Speaks of {', '.join(self.facts)}."]


def trainer_in(folder: Path, *callbacks: Callback, **settings: Any) -> SimpleNamespace:
    data = SimpleNamespace(train_batch_tokens=1000, summary=lambda: {"of_data": "too"})
    return trainer_of([*callbacks, RunSummary()], log_dir=str(folder), datamodule=data, **settings)


def written(folder: Path) -> dict[str, Any]:
    assert [path.name for path in folder.iterdir()] == ["summary.json"]  # and nothing half-written beside it
    return json.loads((folder / "summary.json").read_text())


def test_it_gathers_what_callbacks_and_data_say(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, Speaker({"one": 1}, []), Callback(), Speaker({"two": 2}, []), global_step=7)
    RunSummary().on_fit_end(trainer, small_module())
    summary = written(tmp_path)
    assert summary.items() >= {"one": 1, "two": 2, "of_data": "too", "step_stop": 7, "tokens_seen": 7000}.items()
    assert summary["phases_missed"] == []
    assert summary["techniques"] == ["Speaks of one.", "Speaks of two."]


def test_a_phase_that_never_came_is_a_warning_and_stands_in_the_summary(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, Speaker({}, ["this never came"]), Speaker({}, ["nor that"]))
    with pytest.warns(UserWarning, match="A phase never came: this never came.") as warned:
        RunSummary().on_fit_end(trainer, small_module())
    assert "A phase never came: nor that." in {str(warning.message) for warning in warned}
    assert written(tmp_path)["phases_missed"] == ["this never came", "nor that"]


def test_it_describes_the_machine_and_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "41")
    module = small_module()
    RunSummary().on_fit_end(trainer_in(tmp_path, world_size=4), module)
    summary = written(tmp_path)
    assert (summary["seed"], summary["world_size"]) == (41, 4)
    assert summary["num_params"] == sum(p.numel() for p in module.parameters())
    assert summary["network"].startswith("2 blocks of width 64")
    assert (summary["python"], summary["torch"]) == (platform.python_version(), torch.__version__)
    assert summary["device"]


def test_a_validation_writes_a_summary_of_its_own_but_not_one_within_a_fit(tmp_path: Path) -> None:
    module = small_module()
    RunSummary().on_validation_end(trainer_in(tmp_path, Speaker({"one": 1}, ["x"])), module)
    assert list(tmp_path.iterdir()) == []
    validating = SimpleNamespace(fn=TrainerFn.VALIDATING)
    RunSummary().on_validation_end(trainer_in(tmp_path, Speaker({"one": 1}, ["x"]), state=validating), module)
    summary = written(tmp_path)
    assert summary["one"] == 1
    assert "phases_missed" not in summary


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    RunSummary().on_fit_end(trainer_in(tmp_path, is_global_zero=False), small_module())
    assert list(tmp_path.iterdir()) == []


def test_a_run_too_short_for_its_phases_says_which_and_why(data_folder: Path, tmp_path: Path) -> None:
    settings = {
        **NARROW,
        "trainer.max_steps": 2,
        "schedule.warmdown_steps": 1,  # the last step would have had to be followed by another
        "late_qat.start_fraction": 0.9,
        "averaging.every_n_steps": 50,
    }
    with pytest.warns(UserWarning, match="A phase never came") as warned:
        main(fit_arguments(data_folder, tmp_path, **settings))
    said = [str(warning.message) for warning in warned if "A phase never came" in str(warning.message)]
    missed = summary_of(tmp_path)["phases_missed"]
    assert said == [f"A phase never came: {sentence}." for sentence in missed]
    assert len(missed) == 3
    for begin in ("the learning rate never warmed down", "late QAT never began", "no snapshot was averaged"):
        assert any(sentence.startswith(begin) for sentence in missed)
    assert summary_of(tmp_path)["qat_start_step"] is None


def test_a_run_of_every_phase_missed_none(finished_run: FinishedRun) -> None:
    summary = summary_of(finished_run.folder)
    assert summary["phases_missed"] == []
    assert summary["num_params"] == sum(p.numel() for p in finished_run.cli.model.parameters())
    assert summary["seed"] == 1337
