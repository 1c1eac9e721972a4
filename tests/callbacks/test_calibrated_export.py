"""A run that averages exponentially and exports by GPTQ: what its quantizer is shown, and what comes out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cli import main
from components.artifact import read_artifact
from components.calibration import collect_hessians
from components.gpt import GPT, GPTConfig
from components.gptq import GPTQ
from components.quantization import store
from components.storage import assign
from components.weights_file import read_weights
from datamodules.shards import find_shards
from datamodules.stream import TokenStream
from records.train_log import parse_log
from tests.support import fit_arguments, summary_of

SETTINGS = {"trainer.max_steps": 4, "warmup.steps": 1, "model.compile": "false", "late_qat.start_fraction": 1}
CALIBRATED = {"export.quantizer": "GPTQ", "export.quantizer.calibration_batches": 3}
TRAINING = {"scorer": "ScoreFirstTraining", "scorer.chunk_tokens": 256, "scorer.epochs": 1}


@pytest.fixture(scope="module")
def run(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a run's files, and that of its data."""
    folder = tmp_path_factory.mktemp("calibrated") / "runs"
    averaged = {"averaging": "ExponentialMean", "averaging.decay": 0.5}
    main(fit_arguments(_corpus, folder, **SETTINGS, **CALIBRATED, **averaged, **TRAINING))
    return folder, _corpus


def test_the_file_holds_what_gptq_gives_on_the_streams_first_micro_batches(run: tuple[Path, Path]) -> None:
    folder, data = run
    log = folder / "lightning_logs" / "version_0"
    saved = read_weights(log / "model.safetensors")
    artifact = read_artifact(log / "model.golf")
    network = GPT(GPTConfig(**saved.settings))
    network.load_state_dict(saved.weights)
    stream = TokenStream(find_shards(data, "train"), network.config.vocab_size)
    spans = [torch.from_numpy(stream.take(129 * i, 129).astype(np.int64)) for i in range(3)]
    quantizer = GPTQ()
    quantizer.hessians = collect_hessians(network, [span[:-1].view(2, 64) for span in spans])
    storages = {name: rule.kind for name, rule in assign(network.shapes(), artifact.rules).items()}
    expected = store(dict(network.named_parameters()), storages, quantizer)
    num_calibrated = 0
    for name, tensor in expected.items():
        assert torch.equal(artifact.tensors[name].values, tensor.values), name
        num_calibrated += name in quantizer.hessians and tensor.scales is not None
    assert num_calibrated > 4


def test_the_summary_names_the_average(run: tuple[Path, Path]) -> None:
    assert summary_of(run[0])["ema_decay"] == 0.5


def test_log_and_record_say_how_long_it_calibrated_and_what_it_trained_on_after_scoring(run: tuple[Path, Path]) -> None:
    text = (run[0] / "lightning_logs" / "version_0" / "train.log").read_text()
    log, record = parse_log(text), summary_of(run[0])
    assert log.train_seconds == pytest.approx(record["wallclock_seconds"], abs=5e-4)  # the calibration's included
    [sentence] = [line for line in text.splitlines() if line.startswith("Test-time training")]
    assert sentence.startswith("Test-time training: 3 chunks of 256 targets, 768 targets in all")
    assert sentence in record["techniques"]
    assert record["scorer"] == "components.test_time_training.ScoreFirstTraining"
    assert record["test_time_training"]["trained"] == [[0, 256, 256], [256, 512, 512], [512, 768, 768]]


def test_calibration_batches_of_0_are_refused_before_anything_is_trained(data_folder: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, **CALIBRATED, "export.quantizer.calibration_batches": 0}
    with pytest.raises(SystemExit) as exit:
        main(fit_arguments(data_folder, tmp_path / "runs", **settings))
    assert "error: export.quantizer.calibration_batches is 0, and GPTQ cannot round without calib" in str(exit.value)
    assert not (tmp_path / "runs").exists()


def test_late_qat_refuses_a_calibrated_quantizer_before_anything_is_trained(data_folder: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, **CALIBRATED, "late_qat.start_fraction": 0.5}
    with pytest.raises(SystemExit) as exit:
        main(fit_arguments(data_folder, tmp_path / "runs", **settings))
    assert str(exit.value) == (
        "error: late QAT cannot fake what GPTQ stores, which depends on its calibration; set late_qat.start_fraction "
        "to 1 (never), or export.quantizer to Nearest."
    )
    assert not list((tmp_path / "runs").rglob("*.golf"))
