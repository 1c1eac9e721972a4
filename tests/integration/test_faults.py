"""What real processes do when a signal comes, a number stops being finite, or a rank is lost."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import main
from tests.integration.faults import ENDLESS, RunningFit, running
from tests.support import NARROW, fit_arguments, run, scalars_of, summary_of

TWO = {"trainer.devices": 2, "trainer.strategy": "ddp"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")
LEAVE_SECONDS = 30  # 5 s and a step, with room for a busy machine


def fit(data: Path, runs: Path, **settings: Any) -> list[str]:
    return ["cli.py", *fit_arguments(data, runs, **{**NARROW, **settings})]


def sentences(fit: RunningFit, start: str) -> list[str]:
    assert "Traceback" not in fit.text, fit.text
    return [line for line in fit.text.splitlines() if line.startswith(start)]


def saved_step(fit: RunningFit) -> int:
    """The step of the newest checkpoint that the one sentence of a stopped run names."""
    [sentence] = sentences(fit, "Stopped by ")
    steps = {int(file.stem.removeprefix("step_")): file for file in fit.runs.rglob("*.ckpt")}
    assert f"go on from step {max(steps)}" in sentence
    assert f"--ckpt_path {steps[max(steps)]}" in sentence
    return max(steps)


def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_bits(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(data_folder, runs), runs) as process:
        process.wait_for("^step 4 ")
        process.press_ctrl_c()
        assert process.end(LEAVE_SECONDS) == 130
        step = saved_step(process)
        assert 4 <= step < 12
        left = {path.name for path in runs.rglob("*") if path.is_file() and path.suffix not in (".yaml", ".log")}
        assert {name for name in left if not name.startswith(("events.out", "history", "lock", "reached"))} == {
            f"step_{step}.ckpt"
        }
    resumed = main([*fit(data_folder, runs)[1:], "--ckpt_path=last"])
    whole = main(fit(data_folder, tmp_path / "whole")[1:])
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_signal_in_the_warm_up_leaves_at_once(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(data_folder, runs, **{"warmup.steps": 1_000_000}), runs) as process:
        process.wait_for("parameters, 1 ranks")
        time.sleep(1)
        os.kill(process.process.pid, signal.SIGTERM)
        assert process.end(LEAVE_SECONDS) == 143
        assert sentences(process, "Stopped") == ["Stopped by SIGTERM: there was nothing to save."]


@pytest.mark.slow
def test_a_signal_in_a_validation_saves_and_the_run_goes_on_to_the_same_bits(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # Step 6 is validated, on windows one by one.
    settings = {"scoring.windows_per_batch": 1, "scoring.max_tokens": 20_000, "trainer.enable_progress_bar": "true"}
    with running(fit(data_folder, runs, **settings), runs) as process:
        process.wait_for("^step 6 ")
        os.kill(process.process.pid, signal.SIGTERM)
        assert process.end(LEAVE_SECONDS) == 143
        assert saved_step(process) == 6
    resumed = main([*fit(data_folder, runs, **settings)[1:], "--ckpt_path=last"])
    whole = main(fit(data_folder, tmp_path / "whole", **settings)[1:])
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_to_any_rank_stops_all_of_them_at_one_step(rank: int, data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(data_folder, runs, **ENDLESS, **TWO), runs) as process:
        process.wait_for("^step 3 ")
        os.kill(process.ranks()[rank], signal.SIGTERM)
        assert process.end(LEAVE_SECONDS) == 143
        assert saved_step(process) >= 3


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(data_folder, runs, **ENDLESS, **TWO), runs) as process:
        process.wait_for("^step 1 ")
        process.press_ctrl_c()
        process.press_ctrl_c()
        assert process.end(LEAVE_SECONDS) == 130


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_loss_of_a_rank_is_one_sentence(rank: int, data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(data_folder, runs, **ENDLESS, **TWO, **{"checkpoint.every_seconds": 0.01}), runs) as process:
        process.wait_for("^step 3 ")
        os.kill(process.ranks()[rank], signal.SIGKILL)
        assert process.end(60) == (1 if rank else -signal.SIGKILL)
        [sentence] = sentences(process, "error: ")
        assert "is lost; to go on from step " in sentence


@pytest.mark.slow
def test_a_rank_that_hangs_is_lost_too(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(data_folder, runs, **ENDLESS, **TWO), runs) as process:
        process.wait_for("^step 3 ")
        os.kill(process.ranks()[1], signal.SIGSTOP)
        assert process.end(90) == 1
        [sentence] = sentences(process, "error: ")
        assert "did not answer in time" in sentence


@pytest.mark.slow
def test_torchrun_restarts_a_run_which_ends_as_if_nothing_had_happened(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    settings = {**TWO, "trainer.val_check_interval": 24}
    arguments = fit(data_folder, runs, **settings, **{"checkpoint.every_seconds": 0.01})
    with running([*TORCHRUN, *arguments], runs) as process:
        process.wait_for("^step 6 ")
        os.kill(process.ranks()[-1], signal.SIGKILL)
        assert process.end(240) == 0
    whole = run(*fit(data_folder, tmp_path / "whole", **settings), timeout=240)
    assert whole.returncode == 0, whole.stderr
    assert summary_of(runs, version=1)["val_bpb"] == pytest.approx(summary_of(tmp_path / "whole")["val_bpb"], abs=1e-4)
    assert min(scalars_of(runs, "loss/train", version=1)) > 1


def test_a_loss_that_is_not_a_number_ends_the_run_and_exports_nothing(
    data_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Without a warm-up, whose scoring would find the weights damaged first.
    settings = {"model.optimizer.matrix_lr": 1e30, "trainer.log_every_n_steps": 4, "warmup.steps": 0}
    with pytest.raises(SystemExit) as exit:
        main(fit(data_folder, tmp_path / "runs", **settings)[1:])
    assert "gradient norm nan at step 2, with learning rates matrices 1e+30, embeddings 0.03" in str(exit.value.code)
    assert not list((tmp_path / "runs").rglob("model.*"))
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once(data_folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with running(fit(tmp_path / "nowhere", runs, **TWO), runs) as process:
        assert process.end(120) == 1
        assert len(sentences(process, "error: ")) == 1


@pytest.mark.slow
def test_two_ranks_train_a_network_of_one_layer(data_folder: Path, tmp_path: Path) -> None:
    settings = {**TWO, "model.num_layers": 1, "trainer.max_steps": 3}
    result = run(*fit(data_folder, tmp_path / "runs", **settings), timeout=240)
    assert result.returncode == 0, result.stderr
