"""history.jsonl: its lines on a mock trainer, and a finished run's."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.common import announce
from callbacks.history import HISTORY, History, parse_history
from callbacks.monitor import Monitor
from callbacks.scoring import ValidationScore
from components.scoring import Score
from tests.callbacks.support import clock_at, trainer_of
from tests.support import FinishedRun

LAYERS = [("defaults", {"a": 1}), ("run.yaml", {"a": 2})]


@pytest.fixture
def history() -> Iterator[History]:
    history = History(["fit", "--a=3"], LAYERS)
    yield history
    history.teardown(None, None, "fit")


def trainer_in(folder: Path, history: History, **settings: Any) -> SimpleNamespace:
    monitor, score = Monitor(), ValidationScore()
    monitor.metrics = {"loss/train": 2.5}
    score.score = Score(nats=30.0, num_bytes=40, num_tokens=10, num_windows=1)
    return trainer_of([clock_at(), monitor, score, history], log_dir=str(folder / "logs"), **settings)


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logs" / HISTORY).read_text().splitlines()]


def take_steps(trainer: SimpleNamespace, history: History, *ends: float) -> None:
    for elapsed in ends:
        trainer.global_step += 1
        trainer.callbacks[0].elapsed = elapsed
        history.on_train_batch_end(trainer, None, None, None, 0)


def test_every_kind_of_line(history: History, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, history, log_every_n_steps=2)
    history.setup(trainer, None, "fit")
    history.on_train_start(trainer, None)
    take_steps(trainer, history, 1.0, 3.0, 3.5)
    announce(trainer, "tag", "something happened")
    history.on_validation_epoch_end(trainer, None)
    take_steps(trainer, history, 4.0)
    metrics = {"loss/train": 2.5}
    assert entries(tmp_path) == [
        {"kind": "start", "command": ["fit", "--a=3"], "layers": [["defaults", {"a": 1}], ["run.yaml", {"a": 2}]]},
        # Each step's own time, also those that are not logged.
        {"kind": "step", "step": 2, "elapsed": 3, "phase": "training", "metrics": metrics, "step_seconds": [1, 2]},
        {"kind": "event", "step": 3, "elapsed": 3.5, "tag": "tag", "sentence": "something happened"},
        {"kind": "score", "step": 3, "elapsed": 3.5, "val_loss": 3.0, "val_bpb": pytest.approx(1.082021, abs=1e-6)},
        {"kind": "step", "step": 4, "elapsed": 4, "phase": "training", "metrics": metrics, "step_seconds": [0.5, 0.5]},
    ]


def test_a_number_that_is_not_finite_is_null(history: History, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, history)
    trainer.callbacks[1].metrics = {"loss/train": float("nan"), "other": float("inf"), "lr": 0.5}
    history.setup(trainer, None, "fit")
    take_steps(trainer, history, 1.0)
    assert entries(tmp_path)[1]["metrics"] == {"loss/train": None, "other": None, "lr": 0.5}


def test_only_the_first_rank_writes(history: History, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, history, is_global_zero=False)
    history.setup(trainer, None, "fit")
    history.on_train_start(trainer, None)
    take_steps(trainer, history, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_validation_of_its_own_writes_only_how_it_was_started(history: History, tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, history, state=SimpleNamespace(fn=TrainerFn.VALIDATING))
    history.setup(trainer, None, "validate")
    history.on_validation_epoch_end(trainer, None)
    assert [entry["kind"] for entry in entries(tmp_path)] == ["start"]


def test_a_resumed_run_has_the_lines_up_to_its_checkpoint(history: History, tmp_path: Path) -> None:
    first = trainer_in(tmp_path / "first", history)
    history.setup(first, None, "fit")
    take_steps(first, history, 1.0, 2.0, 3.0)
    checkpoint = tmp_path / "first" / "logs" / "checkpoints" / "step=2.ckpt"
    again = History(["fit"], LAYERS, checkpoint)
    trainer = trainer_in(tmp_path / "second", again, global_step=2)
    trainer.callbacks[0].elapsed = 2.0
    again.setup(trainer, None, "fit")
    again.on_train_start(trainer, None)
    take_steps(trainer, again, 2.25)
    again.teardown(trainer, None, "fit")
    found = entries(tmp_path / "second")
    assert [entry["kind"] for entry in found] == ["start", "step", "step", "event", "step"]
    assert found[1:3] == entries(tmp_path / "first")[1:3]
    assert found[3]["sentence"] == f"resumed at step 2 from {checkpoint}"
    assert found[4]["step_seconds"] == [0.25]


def test_a_checkpoint_that_was_moved_has_no_earlier_lines(tmp_path: Path) -> None:
    history = History(["fit"], LAYERS, tmp_path / "elsewhere" / "step=2.ckpt")
    trainer = trainer_in(tmp_path, history, global_step=2)
    history.setup(trainer, None, "fit")
    history.on_train_start(trainer, None)
    history.teardown(trainer, None, "fit")
    assert [entry["kind"] for entry in entries(tmp_path)] == ["start", "event"]


def test_a_line_that_was_cut_short_is_left_out() -> None:
    lines = ['{"kind":"start"}', '{"kind":"st', "[1]", '{"other":1}', '{"kind":"step"}']
    assert [entry["kind"] for entry in parse_history(lines)] == ["start", "step"]


def test_a_run_tells_its_whole_story(finished_run: FinishedRun) -> None:
    found = list(parse_history((finished_run.logs / HISTORY).read_text().splitlines()))
    steps = [entry for entry in found if entry["kind"] == "step"]
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    assert [entry["phase"] for entry in steps] == ["constant rate"] * 5 + ["warm-down"] * 4 + ["late QAT"] * 3
    assert {"loss/train", "speed/tokens_per_second", "lr/matrices", "momentum"} <= steps[0]["metrics"].keys()
    assert [entry["step"] for entry in found if entry["kind"] == "score"] == [6, 12]
    assert {"warm-down", "late QAT", "averaging", "export"} <= {e["tag"] for e in found if e["kind"] == "event"}
    assert found[0]["command"][0] == "fit"
    assert found[0]["layers"][0][1]["data"]["train_seq_len"] == 2048  # the default, not the run's 64
