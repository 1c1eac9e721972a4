"""The command line: which weights a validate scores, what classes may be called, and what is taken from where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import sentencepiece
import torch
import yaml

from callbacks.common import stage_of
from cli import main
from components.gpt import GPT
from components.weights_file import read_weights
from records.script import compressed_bytes
from tests.support import (
    NARROW,
    ROOT,
    TINY,
    FinishedRun,
    fit_arguments,
    run,
    summary_of,
    validate_arguments,
    write_shard,
)

NETWORK = {f"model.{name}": value for name, value in {**TINY, "num_layers": 2}.items()}


@pytest.fixture
def validated(finished_run: FinishedRun, tmp_path: Path) -> Callable[..., float]:
    """Bits per byte by a ``validate`` that knows the data and the windows, and whatever else it is told."""

    def validated(**settings: Any) -> float:
        runs = tmp_path / "validated"
        shutil.rmtree(runs, ignore_errors=True)
        main(validate_arguments(finished_run.data, runs, **settings))
        return summary_of(runs)["val_bpb"]

    return validated


@pytest.fixture
def refusal(finished_run: FinishedRun, tmp_path: Path) -> Callable[..., str]:
    """The one sentence of a ``validate`` that must fail."""

    def refusal(**settings: Any) -> str:
        with pytest.raises(SystemExit) as exit:
            main(validate_arguments(finished_run.data, tmp_path / "refused", **settings))
        assert str(exit.value.code).startswith("error: ")
        return str(exit.value.code)

    return refusal


def last_bits_per_byte(run: FinishedRun) -> float:
    """The score of the weights that training ended with, read without the command."""
    network = GPT(run.cli.model.network.config).eval()
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): weight for name, weight in state.items()})
    return run.cli.datamodule.final_pass("").run(network, show_progress=False).bits_per_byte


def weights_of(run: FinishedRun) -> Path:
    return run.logs / "model.safetensors"


def test_a_checkpoint_is_scored_as_the_average_that_the_fit_exported(
    finished_run: FinishedRun, validated: Callable[..., float]
) -> None:
    exported = summary_of(finished_run.folder)["pre_quant_val_bpb"]
    assert validated(ckpt_path=finished_run.checkpoint) == pytest.approx(exported, abs=1e-6)


def test_the_last_weights_of_a_checkpoint_are_scored_if_asked_for(
    finished_run: FinishedRun, validated: Callable[..., float]
) -> None:
    expected = last_bits_per_byte(finished_run)
    assert abs(expected - summary_of(finished_run.folder)["pre_quant_val_bpb"]) > 1e-3  # or the two could be mixed up
    for settings in ({}, {"averaging": "null"}, {"averaging": "tests.callbacks.toy.OtherMean"}):
        last = validated(ckpt_path=finished_run.checkpoint, last_weights="true", **settings)
        assert last == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("command", ["validate", "fit"])
def test_an_average_that_would_be_dropped_is_an_error(command: str, finished_run: FinishedRun, tmp_path: Path) -> None:
    arguments = fit_arguments if command == "fit" else validate_arguments
    settings = [f"--ckpt_path={finished_run.checkpoint}", "--averaging=null"]
    with pytest.raises(SystemExit) as exit:
        main([*_without_averaging(arguments(finished_run.data, tmp_path / "runs")), *settings])
    sentence = str(exit.value.code)
    assert sentence.startswith(f"error: {finished_run.checkpoint} holds averaged weights, but the configuration")
    assert "--averaging components.averages.SnapshotMean" in sentence
    assert ("--last_weights" in sentence) == (command == "validate")  # fit has no such option
    assert not (tmp_path / "runs").exists()


def _without_averaging(arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith("--averaging.")]


def test_an_average_of_another_kind_is_an_error(finished_run: FinishedRun, refusal: Callable[..., str]) -> None:
    sentence = refusal(ckpt_path=finished_run.checkpoint, averaging="tests.callbacks.toy.OtherMean")
    kind = "components.averages.SnapshotMean"
    assert f"average is a {kind}, but the configuration asks for tests.callbacks.toy.OtherMean; give " in sentence
    assert f"--averaging {kind}" in sentence


def test_float_weights_are_scored_with_the_settings_in_their_metadata(
    finished_run: FinishedRun, validated: Callable[..., float]
) -> None:
    exported = summary_of(finished_run.folder)["pre_quant_val_bpb"]
    assert validated(weights=weights_of(finished_run)) == pytest.approx(exported, abs=1e-6)


def test_float_weights_of_another_program_are_scored_with_the_settings_given(
    finished_run: FinishedRun, validated: Callable[..., float], refusal: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(read_weights(weights_of(finished_run)).weights, file)
    exported = summary_of(finished_run.folder)["pre_quant_val_bpb"]
    assert validated(weights=file, **NETWORK) == pytest.approx(exported, abs=1e-6)
    sentence = refusal(weights=file, **{**NETWORK, "model.num_layers": 3})
    assert f"{file} holds the weights of another network: blocks.2." in sentence


def test_float_weights_of_a_network_that_this_program_does_not_know(
    finished_run: FinishedRun, refusal: Callable[..., str], tmp_path: Path
) -> None:
    found = read_weights(weights_of(finished_run))
    file = tmp_path / "newer.safetensors"
    metadata = {"settings": json.dumps({**found.settings, "num_experts": 8})}
    safetensors.torch.save_file(found.weights, file, metadata)
    assert f"{file} describes a network that this program does not know" in refusal(weights=file)


@pytest.mark.parametrize(
    ("first", "second"), [("artifact", "weights"), ("artifact", "ckpt_path"), ("weights", "ckpt_path")]
)
def test_weights_come_from_one_place(first: str, second: str, refusal: Callable[..., str]) -> None:
    sentence = refusal(**{first: "one", second: "other"})
    assert f"--{first} and --{second} both name weights to score; give one of them." in sentence


@pytest.mark.parametrize("settings", [{}, {"weights": "some.safetensors"}, {"artifact": "some.golf"}])
def test_last_weights_are_a_checkpoints(settings: dict[str, str], refusal: Callable[..., str]) -> None:
    assert "--last_weights true applies to a checkpoint" in refusal(last_weights="true", **settings)


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


def test_a_runs_configuration_names_its_classes_in_full(finished_run: FinishedRun) -> None:
    config = yaml.safe_load((finished_run.logs / "config.yaml").read_text())
    assert config["averaging"]["class_path"] == "components.averages.SnapshotMean"
    assert config["export"]["quantizer"]["class_path"] == "components.quantization.Nearest"
    assert config["scorer"]["class_path"] == "components.scorer.SlidingWindows"
    assert config["export"]["storage"][0] == {"names": "*", "storage": "float16", "at_most": 65536, "qat": False}


NEW_TECHNIQUE = '''
from components.averages import SnapshotMean
from components.quantization import Nearest


class Brand(SnapshotMean):
    """A new average.

    Args:
        strength: How much.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength


class Newest(Nearest):
    """A new quantizer."""
'''


def test_a_class_in_a_new_file_goes_by_its_short_name(tmp_path: Path) -> None:
    # A copy of the program with one more file, which nothing imports.
    for package in ("callbacks", "command_line", "components", "datamodules", "lightning_modules"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", tmp_path)
    (tmp_path / "components" / "brand.py").write_text(NEW_TECHNIQUE)
    (tmp_path / "some.yaml").write_text("export:\n  quantizer: Newest\nscorer: SlidingWindows\n")
    arguments = [f"--config={tmp_path / 'some.yaml'}", "--averaging=Brand", "--averaging.strength=2.5"]
    result = run(str(tmp_path / "cli.py"), "fit", *arguments, "--print_config", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["averaging"] == {"class_path": "components.brand.Brand", "init_args": {"strength": 2.5}}
    assert config["export"]["quantizer"]["class_path"] == "components.brand.Newest"
    assert config["scorer"] == {"class_path": "components.scorer.SlidingWindows"}


def test_a_window_of_another_length_needs_no_other_setting(finished_run: FinishedRun, tmp_path: Path) -> None:
    arguments = [
        *("validate", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"),
        *(f"--data.path={finished_run.data}", f"--data.tokenizer_path={finished_run.data / 'tokenizer.model'}"),
        *("--scoring.seq_len=128", f"--weights={weights_of(finished_run)}"),
    ]
    cli = main([*arguments, "--scoring.max_tokens=257"])
    # 64 targets a stride by default: 128, then 2 windows more.
    assert (summary_of(tmp_path)["windows"], summary_of(tmp_path)["tokens_scored"]) == (3, 256)
    assert cli.datamodule.example_pass().windows.windows.stride == 128  # a fit's validations: whole windows


@pytest.fixture
def other_vocabulary(tmp_path: Path) -> Path:
    """A data folder whose tokenizer has 300 pieces, documents beginning with id 2."""
    folder = tmp_path / "other"
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a few words to make pieces of", "and a few more words, for other pieces"]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        unk_id=0,
        eos_id=1,
        bos_id=2,
        minloglevel=2,
    )
    write_shard(folder / "fineweb_val_000000.bin", np.arange(300))
    return folder


def test_the_vocabulary_is_the_tokenizers(other_vocabulary: Path, tmp_path: Path) -> None:
    arguments = validate_arguments(other_vocabulary, tmp_path / "runs", **NETWORK)
    cli = main([*arguments, "--model.vocab_size=null", "--model.bos_id=null"])
    config = cli.model.network.config
    assert (config.vocab_size, config.bos_id) == (300, 2)
    assert cli.model.network.tok_emb.weight.shape == (300, 64)
    assert summary_of(tmp_path / "runs")["tokens_scored"] == 299


def test_a_bos_id_that_is_given_stays(other_vocabulary: Path, tmp_path: Path) -> None:
    settings = {**NETWORK, "model.vocab_size": 300, "model.bos_id": 7}
    cli = main(validate_arguments(other_vocabulary, tmp_path / "runs", **settings))
    assert cli.model.network.config.bos_id == 7


def test_another_vocabulary_than_the_tokenizers_is_refused(refusal: Callable[..., str]) -> None:
    sentence = refusal(**{**NETWORK, "model.vocab_size": 512})
    assert "has 1024 pieces where 512 are configured" in sentence


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


def test_help_lists_the_classes_to_choose_from() -> None:
    shown = run("cli.py", "fit", "--help").stdout
    for name in ("averages.ExponentialMean", "gptq.GPTQ", "test_time_training.ScoreFirstTraining"):
        assert f"components.{name}" in shown
