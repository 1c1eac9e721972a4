"""Runs that are killed, that meet a full disk, and that start together."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli import main
from components.checkpoint_file import checkpoints_in, step_of
from tests.support import NARROW, ROOT, fit_arguments, run, summary_of, validate_arguments

# Every technique whose state a checkpoint must hold: fake quantization, an average of every step, layers that are run
# again from the middle on, and an order of the sequences that is not the shards'.
EVERYTHING = {
    "model.num_layers": 3,
    "model.loop_start": 1,
    "model.loop_end": 2,
    "model.num_loops": 1,
    "model.bigram_vocab_size": 0,
    "loops.start_fraction": 0.3,
    "late_qat.start_fraction": 0.5,
    "averaging": "ExponentialMean",
    "data.order": "shuffled",
    "trainer.max_steps": 16,
    "checkpoint.every_seconds": 1e-9,
    "warmup.steps": 4,
}


def arguments_of(data: Path, runs: Path, **settings: Any) -> list[str]:
    every = fit_arguments(data, runs, **{**EVERYTHING, **settings})
    return [argument for argument in every if not argument.startswith("--averaging.")]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "cli.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the runs in this process: sums are then in one order
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at(step: int, arguments: list[str], run: Path) -> None:
    """Kill a run with SIGKILL once it has a checkpoint of this step or a later one."""
    process = start(arguments)
    while not any(step_of(path) >= step for path in checkpoints_in(run / "checkpoints")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def artifact_of(runs: Path, version: int) -> bytes:
    return Path(summary_of(runs, version)["artifact"]).read_bytes()


def test_a_run_killed_twice_ends_with_the_bits_of_one_that_was_not(data_folder: Path, tmp_path: Path) -> None:
    main(arguments_of(data_folder, tmp_path / "whole"))
    whole = summary_of(tmp_path / "whole")
    assert whole["interruptions"] == 0
    runs = tmp_path / "runs"
    arguments = arguments_of(data_folder, runs)
    first, second = sorted(random.sample(range(2, 14), 2))
    kill_at(first, arguments, runs / "lightning_logs" / "version_0")
    arguments.append("--ckpt_path=last")
    kill_at(second, arguments, runs / "lightning_logs" / "version_1")
    main(arguments)
    resumed = summary_of(runs, 2)
    assert artifact_of(runs, 2) == artifact_of(tmp_path / "whole", 0), f"killed after {first} and {second} steps"
    for key in ("val_bpb", "pre_quant_val_bpb", "qat_start_step", "loops_start_step", "step_stop", "tokens_seen"):
        assert resumed[key] == whole[key]
    assert resumed["interruptions"] == 2
    assert resumed["bytes_code"] == whole["bytes_code"]
    assert resumed["train_positions"][1] == whole["train_positions"][1]


def test_a_run_killed_in_its_export_exports_when_it_goes_on(data_folder: Path, tmp_path: Path) -> None:
    settings = {**NARROW, "averaging.start_multiplier": 1}
    main(fit_arguments(data_folder, tmp_path / "whole", **settings))
    assert summary_of(tmp_path / "whole")["snapshots_averaged"] == 4  # after steps 6, 8, 10 and 12
    arguments = fit_arguments(data_folder, tmp_path / "runs", **settings)
    main(arguments)
    run_folder = tmp_path / "runs" / "lightning_logs" / "version_0"
    (run_folder / "summary.json").unlink()  # what a killed export has not written yet
    main([*arguments, "--ckpt_path=last"])
    assert artifact_of(tmp_path / "runs", 1) == artifact_of(tmp_path / "whole", 0)
    assert summary_of(tmp_path / "runs", 1)["snapshots_averaged"] == 4


def test_on_the_clock_the_time_already_spent_counts(data_folder: Path, tmp_path: Path) -> None:
    settings = {**NARROW, "trainer.max_steps": 100_000, "clock.max_seconds": 3, "checkpoint.every_seconds": 1e-9}
    settings |= {"trainer.val_check_interval": 1_000_000}
    arguments = fit_arguments(data_folder, tmp_path, **settings)
    kill_at(8, arguments, tmp_path / "lightning_logs" / "version_0")
    main([*arguments, "--ckpt_path=last"])
    resumed = summary_of(tmp_path, 1)
    log = (tmp_path / "lightning_logs" / "version_1" / "train.log").read_text()
    [started] = [line for line in log.splitlines() if line.startswith("start at step")]
    spent = float(started.split()[-2])
    assert 0 < spent < resumed["wallclock_seconds"]
    assert resumed["interruptions"] == 1


@pytest.mark.filterwarnings("ignore:A phase never came")
def test_a_full_disk_does_not_end_training_and_the_weights_go_elsewhere(
    data_folder: Path, small_disk: Path, tmp_path: Path
) -> None:
    # A checkpoint has over 2 MiB. Beside what fills the disk there is room for the logs, and none for an artifact.
    runs, spare = small_disk / "runs", tmp_path / "spare"
    spare.mkdir()
    (small_disk / "fill").write_bytes(bytes((2 << 20) - (120 << 10)))
    settings = {**NARROW, "checkpoint.every_seconds": 1e-9, "export.spare_folder": spare, "averaging.every_n_steps": 1}
    arguments = fit_arguments(data_folder, runs, **settings)
    with (
        pytest.warns(UserWarning, match=r"checkpoint of step \d+ was not saved .*No space left .*training goes on"),
        pytest.raises(SystemExit) as exit,
    ):
        main(arguments)
    sentence = str(exit.value.code)
    [weights] = spare.rglob("*.safetensors")
    assert f"the float weights are in {weights} (export.spare_folder chooses the place)" in sentence
    assert "No space left on device" in sentence
    assert "--ckpt_path last" not in sentence or "make room" in sentence
    main(validate_arguments(data_folder, tmp_path / "validate", weights=weights))
    main(fit_arguments(data_folder, tmp_path / "whole", **settings))
    assert summary_of(tmp_path / "validate")["val_bpb"] == summary_of(tmp_path / "whole")["pre_quant_val_bpb"]


def test_runs_started_together_get_folders_of_their_own(data_folder: Path, tmp_path: Path) -> None:
    settings = {**NARROW, "trainer.max_steps": 2, "warmup.steps": 0, "late_qat.start_fraction": 1}
    seeds = (1, 2)
    processes = [start([*fit_arguments(data_folder, tmp_path, **settings), f"--seed_everything={s}"]) for s in seeds]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert {summary_of(tmp_path, version)["seed"] for version in (0, 1)} == set(seeds)


def test_validate_without_a_configuration_leaves_the_current_folder_alone(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(fit_arguments(data_folder, tmp_path / "runs", **NARROW))
    summary = summary_of(tmp_path / "runs")
    capsys.readouterr()
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    arguments = validate_arguments(data_folder, tmp_path, artifact=summary["artifact"])
    main([argument for argument in arguments if not argument.startswith("--trainer.default_root_dir")])
    shown = re.search(r"([\d.]+) bits per byte", capsys.readouterr().out)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(summary["val_bpb"])
    assert list(here.iterdir()) == []


def test_a_missing_last_is_one_sentence(data_folder: Path, tmp_path: Path) -> None:
    result = run("cli.py", *fit_arguments(data_folder, tmp_path, **NARROW), "--ckpt_path=last")
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: There is no unfinished run with a checkpoint")
