"""A run's lines of progress: phase, budget, loss and bits per byte."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.clock import Clock
from callbacks.common import phase_of
from callbacks.late_qat import LateQAT
from callbacks.monitor import Monitor
from callbacks.progress import ProgressLines
from callbacks.schedule import Schedule
from tests.callbacks.support import clock_at, trainer_of
from tests.support import NARROW, fit_arguments, run


def trainer_with(clock: Clock, **settings: Any) -> SimpleNamespace:
    return trainer_of(
        [clock, Schedule(), LateQAT(), Monitor()],
        **{"progress_bar_metrics": {}, "lightning_module": None, **settings},
    )


@pytest.mark.parametrize(
    ("multiplier", "qat_start", "name"),
    [
        (1.0, None, "constant rate"),
        (0.999, None, "warm-down"),
        (0.5, 7, "late QAT"),
        (1.0, 0, "late QAT"),
    ],
)
def test_phases_have_names(multiplier: float, qat_start: int | None, name: str) -> None:
    trainer = trainer_with(clock_at())
    _, schedule, late_qat, _ = trainer.callbacks
    schedule.multiplier, late_qat.start_step = multiplier, qat_start
    assert phase_of(trainer) == name


def test_lines_come_at_each_phase_tenth_and_validation(capsys: pytest.CaptureFixture[str]) -> None:
    clock, lines = clock_at(max_seconds=50), ProgressLines()
    trainer = trainer_with(clock, accumulate_grad_batches=2)
    for step in range(1, 21):  # 1 s each: a tenth every 5 s
        clock.elapsed = float(step)
        trainer.global_step = step
        trainer.callbacks[1].multiplier = 1.0 if step < 12 else 0.5
        trainer.callbacks[3].loss = 3.0
        for batch_idx in (2 * step - 2, 2 * step - 1):
            lines.on_train_batch_end(trainer, None, None, None, batch_idx)
        if step == 7:
            trainer.progress_bar_metrics = {"val_loss": 3.2, "val_bpb": 1.91234}
            lines.on_validation_end(trainer, None)
    validated = ", val_loss 3.2000, val_bpb 1.9123"
    assert capsys.readouterr().out.splitlines() == [
        "1.0/50.0 s, constant rate: step 1, loss 3.0000",
        "5.0/50.0 s, constant rate: step 5, loss 3.0000",
        f"7.0/50.0 s, constant rate: step 7, loss 3.0000{validated}",
        f"10.0/50.0 s, constant rate: step 10, loss 3.0000{validated}",
        f"12.0/50.0 s, warm-down: step 12, loss 3.0000{validated}",
        f"15.0/50.0 s, warm-down: step 15, loss 3.0000{validated}",
        f"20.0/50.0 s, warm-down: step 20, loss 3.0000{validated}",
    ]


def test_other_ranks_write_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_with(clock_at(max_seconds=50), is_global_zero=False, global_step=1)
    ProgressLines().on_train_batch_end(trainer, None, None, None, 0)
    assert capsys.readouterr().out == ""


def test_a_run_whose_output_is_a_pipe_writes_few_whole_lines(data_folder: Path, tmp_path: Path) -> None:
    settings = {**NARROW, "trainer.enable_progress_bar": "true", "trainer.enable_model_summary": "null"}
    (tmp_path / "mine.yaml").write_text("clock:\n  max_seconds: 0\n")
    command, *words = fit_arguments(data_folder, tmp_path, **settings)
    result = run("cli.py", command, f"--config={tmp_path / 'mine.yaml'}", *words, PYTHONWARNINGS="")  # a user's
    assert result.returncode == 0, result.stderr
    printed = result.stdout + result.stderr
    assert "\r" not in printed
    assert "\x1b" not in printed
    progress = [line for line in result.stdout.splitlines() if "/12 steps" in line]
    assert progress[0] == "1/12 steps, constant rate: step 1, loss " + progress[0].split()[-1]
    assert any(line.startswith("6/12 steps") and "val_bpb" in line for line in progress)
    assert any(line.startswith("10/12 steps, late QAT") for line in progress)
    assert len(progress) <= 15
    for noise in ("litlogger", "FLOPs", "Total Flops", "LeafSpec", "TPU", "UserWarning", "was deprecated"):
        assert noise not in printed, noise
    assert "parameters" in result.stderr
    assert len(printed.splitlines()) <= 40
