"""What TensorBoard shows of a finished run as text and as histograms."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.common import Event
from callbacks.dashboard import Dashboard
from callbacks.run_folder import RunFolder
from callbacks.tensorboard_log import TensorBoardLog
from cli import main
from components.artifact import read_artifact
from components.run_files import RUNS_NAME
from tests.callbacks.support import trainer_of
from tests.support import FinishedRun, fit_arguments, marks_of


def test_an_event_is_text_at_its_step_and_only_in_tensorboard(tmp_path: Path) -> None:
    log, other = TensorBoardLog(RunFolder(tmp_path)), Mock()
    trainer = trainer_of(loggers=[log, other], global_step=7)
    Dashboard().on_event(trainer, Event("some tag", "It happened."))
    trainer.is_global_zero = False  # another rank has no log
    Dashboard().on_event(trainer, Event("some tag", "It happened here, too."))
    log.finalize("success")
    assert marks_of(tmp_path, "some tag") == {7: "It happened."}
    assert other.mock_calls == []


def test_a_runs_phases_are_marked(finished_run: FinishedRun) -> None:
    # 12 steps with 8 of warm-down and QAT from 0.7 on; snapshots after even steps with a rate under 0.5.
    assert list(marks_of(finished_run.folder, "warm-down")) == [5]
    assert list(marks_of(finished_run.folder, "late QAT")) == [9]
    assert marks_of(finished_run.folder, "averaging") == {10: "snapshot 1 at step 10", 12: "snapshot 2 at step 12"}


@pytest.fixture(scope="module")
def histograms(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """A run with quantized tensors and an empty one, the skips of one layer: its command line, and its histograms."""
    runs = tmp_path_factory.mktemp("histograms")
    settings = {
        "model.num_layers": 1,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 16,
        "late_qat.start_fraction": 0.5,
    }
    cli = main(fit_arguments(_corpus, runs, **settings))
    events = EventAccumulator(str(runs / RUNS_NAME / "version_0"))
    events.Reload()
    shown = {}
    for tag in events.Tags()["histograms"]:
        [event] = events.Histograms(tag)
        shown[tag] = event.histogram_value
    return cli, shown


def test_the_histogram_of_codes_counts_each_code_of_the_artifact(histograms: tuple[Any, dict[str, Any]]) -> None:
    cli, shown = histograms
    tensors = read_artifact(Path(cli.trainer.log_dir) / "model.golf").tensors
    quantized = {name: tensor for name, tensor in tensors.items() if tensor.scales is not None}
    assert {tag for tag in shown if tag.startswith("tensor_codes/")} == {f"tensor_codes/{name}" for name in quantized}
    assert quantized
    for name, tensor in quantized.items():
        codes, counts = np.unique(tensor.values.numpy(), return_counts=True)
        histogram = shown[f"tensor_codes/{name}"]
        # Each limit is the upper end of a bin, half a code above it.
        counted = {
            int(limit - 0.5): int(count)
            for limit, count in zip(histogram.bucket_limit, histogram.bucket, strict=True)
            if count
        }
        assert counted == dict(zip(codes.tolist(), counts.tolist(), strict=True)), name


def test_the_histogram_of_weights_is_of_those_that_were_exported(histograms: tuple[Any, dict[str, Any]]) -> None:
    cli, shown = histograms
    for name, p in cli.model.network.named_parameters():
        if not p.numel():
            assert f"tensor_weights/{name}" not in shown
            continue
        histogram = shown[f"tensor_weights/{name}"]
        assert histogram.num == p.numel(), name
        assert histogram.sum == pytest.approx(p.double().sum().item(), rel=1e-4, abs=1e-3), name
        assert (histogram.min, histogram.max) == (pytest.approx(p.min().item()), pytest.approx(p.max().item())), name


def test_a_table_tells_what_storing_each_tensor_costs(finished_run: FinishedRun) -> None:
    events = EventAccumulator(str(finished_run.logs))
    events.Reload()
    [event] = events.Tensors("tensors/text_summary")
    rows = event.tensor_proto.string_val[0].decode().splitlines()[2:]
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in rows}
    assert cells.keys() == finished_run.cli.model.network.state_dict().keys()
    num_bytes = sum(int(row[3].replace(",", "")) for row in cells.values())
    # The rest of the file describes the tensors and their distributions.
    assert 0.5 < num_bytes / (finished_run.logs / "model.golf").stat().st_size < 1
    for name, row in cells.items():
        # In so narrow a network each is float16, rounded by half a unit at most.
        assert 0 <= float(row[4].strip("| ")) <= 2**-11, name
