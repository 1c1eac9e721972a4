"""The command line as a whole: what it adds to a run for people to see, and what it counts as code."""

from pathlib import Path

import yaml

from callbacks.common import stage_of
from cli import main
from records.script import compressed_bytes
from tests.support import NARROW, FinishedRun, fit_arguments, summary_of


def test_the_trainers_callbacks_are_in_order(finished_run: FinishedRun) -> None:
    callbacks = finished_run.cli.trainer.callbacks
    stages = [stage_of(callback) for callback in callbacks]
    assert stages == sorted(stages)
    names = [type(callback).__name__ for callback in callbacks]
    # What must precede what: the clock starts after the compilation, rates are set from its reading, snapshots are
    # taken by the rate, and observers see all of it.
    chain = ["CompileWarmup", "Clock", "Schedule", "Averaging", "Monitor", "RunLog", "RunSummary", "History"]
    chain += ["Checkpoints"]
    assert sorted(chain, key=names.index) == chain
    assert names.index("LateQAT") < names.index("BudgetProgressBar")


def test_a_runs_code_is_counted_for_its_own_configuration(data_folder: Path, tmp_path: Path) -> None:
    seen = []

    def count(config: str) -> int:
        seen.append(yaml.safe_load(config))
        return 12_345

    settings = {**NARROW, "trainer.max_steps": 1, "warmup.steps": 0, "late_qat.start_fraction": 1}
    main(fit_arguments(data_folder, tmp_path, **settings), count_code=count)
    assert summary_of(tmp_path)["bytes_code"] == 12_345
    [config] = seen
    assert config["trainer"]["max_steps"] == 1
    assert config["averaging"]["class_path"] == "components.averages.SnapshotMean"
    saved = yaml.safe_load((tmp_path / "lightning_logs" / "version_0" / "config.yaml").read_text())
    assert config["model"] == saved["model"]


def test_by_default_the_packed_script_of_the_configuration_is_counted(finished_run: FinishedRun) -> None:
    config = (finished_run.logs / "config.yaml").read_text()
    assert summary_of(finished_run.folder)["bytes_code"] == compressed_bytes(config)
