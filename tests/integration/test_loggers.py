"""Loggers that the user chooses, by name."""

import csv
import importlib.util
from pathlib import Path

import pytest
import yaml

from cli import main
from tests.support import NARROW, fit_arguments, run, summary_of, validate_arguments

FEW_STEPS = {**NARROW, "trainer.max_steps": 4, "trainer.val_check_interval": 16, "late_qat.start_fraction": 0.5}


def test_a_csv_logger_gets_every_scalar_and_the_settings(data_folder: Path, tmp_path: Path) -> None:
    runs, chosen = tmp_path / "runs", tmp_path / "chosen"
    main(
        fit_arguments(
            data_folder, runs, **FEW_STEPS, **{"trainer.logger": "CSVLogger", "trainer.logger.save_dir": chosen}
        )
    )
    [file] = chosen.rglob("metrics.csv")
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    curve = [int(row["step"]) for row in rows if row["loss/train"]]
    assert sorted(set(curve)) == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["bits_per_byte/val"]] == ["2", "4"]
    [result] = [float(row["result/bits_per_byte"]) for row in rows if row["result/bits_per_byte"]]
    assert result == pytest.approx(summary_of(runs)["val_bpb"])
    [last] = [float(row["result/last_weights"]) for row in rows if row["result/last_weights"]]
    assert last == pytest.approx(summary_of(runs)["last_weights_bpb"])
    settings = yaml.safe_load(file.with_name("hparams.yaml").read_text())
    assert settings["model"]["model_dim"] == 64
    assert list((runs / "lightning_logs" / "version_0").glob("events.out.tfevents.*"))  # beside TensorBoard's


def test_without_a_log_a_run_has_its_folder_all_the_same(data_folder: Path, tmp_path: Path) -> None:
    for version in (0, 1):
        main(fit_arguments(data_folder, tmp_path, **FEW_STEPS, **{"trainer.logger": "false"}))
        folder = tmp_path / "lightning_logs" / f"version_{version}"
        left = {path.name for path in folder.iterdir()}
        assert left >= {"model.golf", "model.safetensors", "summary.json", "train.log", "config.yaml", "checkpoints"}
        assert not any(name.startswith("events") for name in left)
    assert summary_of(tmp_path, 0)["val_bpb"] == summary_of(tmp_path, 1)["val_bpb"]
    validate = {"artifact": folder / "model.golf", "trainer.logger": "false"}
    main(validate_arguments(data_folder, tmp_path / "validate", **validate))
    assert summary_of(tmp_path / "validate")["val_bpb"] == pytest.approx(summary_of(tmp_path)["val_bpb"], abs=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_logs_offline(data_folder: Path, tmp_path: Path) -> None:
    settings = {
        **FEW_STEPS,
        "trainer.logger": "WandbLogger",
        "trainer.logger.offline": "true",
        "trainer.logger.save_dir": tmp_path / "wandb",
    }
    result = run("cli.py", *fit_arguments(data_folder, tmp_path / "runs", **settings))
    assert result.returncode == 0, result.stderr
    [log] = (tmp_path / "wandb").rglob("*.wandb")
    content = log.read_bytes()
    for tag in (b"bits_per_byte/val", b"loss/train", b"result/bits_per_byte", b"result/last_weights"):
        assert tag in content, tag
    assert (tmp_path / "runs" / "lightning_logs" / "version_0" / "model.golf").is_file()
