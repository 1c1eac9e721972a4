"""TensorBoard's log: its layout, the settings beside the scores, and a disk that fills."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from callbacks.run_folder import RunFolder
from callbacks.tensorboard_log import TensorBoardLog
from components.run_files import RUNS_NAME
from tests.support import FinishedRun, scalars_of


def events_in(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def plugin_data(folder: Path) -> Iterator[HParamsPluginData]:
    events = events_in(folder)
    for content in events.PluginTagToContent("hparams").values():
        yield HParamsPluginData.FromString(content)


def settings_shown(folder: Path) -> dict[str, Any]:
    [start] = [data.session_start_info for data in plugin_data(folder) if data.HasField("session_start_info")]
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def test_every_chart_of_the_layout_shows_something_of_a_run_and_every_curve_is_in_one(
    finished_run: FinishedRun,
) -> None:
    events = events_in(finished_run.logs)
    [tensor] = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(tensor.tensor_proto.string_val[0])
    tags = set(events.Tags()["scalars"])
    shown = set()
    for category in layout.category:
        for chart in category.chart:
            matched = {tag for tag in tags for pattern in chart.multiline.tag if re.match(f"{pattern}$", tag)}
            assert matched, chart.title
            shown |= matched
    assert shown == tags


def test_bits_per_byte_and_loss_come_first(finished_run: FinishedRun) -> None:
    # TensorBoard sorts groups by name, and opens on the first two.
    tags = events_in(finished_run.logs).Tags()
    groups = sorted({tag.split("/")[0] for tag in [*tags["scalars"], *tags["histograms"]]})
    assert groups[:2] == ["bits_per_byte", "loss"]
    assert "epoch" not in groups


def test_the_settings_stand_beside_the_scores(finished_run: FinishedRun) -> None:
    shown = settings_shown(finished_run.logs)
    assert (shown["model.model_dim"], shown["schedule.warmdown_steps"]) == (64, 8)
    assert shown["averaging.class_path"] == "components.averages.SnapshotMean"
    assert not any(name.startswith(("trainer.", "attention.")) for name in shown)
    [experiment] = [data.experiment for data in plugin_data(finished_run.logs) if data.HasField("experiment")]
    compared = [info.name.tag for info in experiment.metric_infos]
    assert compared[0] == "result/bits_per_byte"
    assert set(compared) <= set(events_in(finished_run.logs).Tags()["scalars"])


def test_settings_have_dotted_names_and_unset_ones_are_left_out(tmp_path: Path) -> None:
    log = TensorBoardLog(RunFolder(tmp_path))
    log.log_hyperparams({"model": {"dim": 8, "leak": None, "kinds": ["a", "b"]}, "trainer": {"devices": 8}, "seed": 3})
    log.finalize("success")
    assert settings_shown(tmp_path / RUNS_NAME / "version_0") == {
        "model.dim": 8,
        "model.kinds": "['a', 'b']",
        "seed": 3,
    }


def test_a_full_disk_ends_the_log_with_one_warning(small_disk: Path, recwarn: pytest.WarningsRecorder) -> None:
    logger = TensorBoardLog(RunFolder(small_disk))
    logger.log_metrics({"early": 1.0}, step=1)
    logger.experiment.flush()
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            if sum(path.stat().st_size for path in small_disk.rglob("*")) >= (2 << 20) - (16 << 10):
                break
    for step in range(2, 5000):
        logger.log_metrics({"late": float(step)}, step=step)
    logger.save()
    logger.experiment.flush()
    logger.finalize("success")
    [warning] = [str(w.message) for w in recwarn if "TensorBoard's log" in str(w.message)]
    assert warning.endswith("ends here (No space left on device); the run goes on.")
    fill.unlink()
    assert scalars_of(small_disk, "early") == {1: 1.0}
