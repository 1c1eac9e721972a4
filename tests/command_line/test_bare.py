"""Which weights a validate scores, and what is taken from where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from cli import GolfCLI, main
from command_line.bare import BareCLI
from command_line.run import run_cli
from components.gpt import GPT
from components.weights_file import read_weights
from tests.support import TINY, FinishedRun, fit_arguments, summary_of, validate_arguments

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


@pytest.fixture(params=[BareCLI, GolfCLI])
def refusal(finished_run: FinishedRun, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., str]:
    """The one sentence of a ``validate`` that must fail, in a record's script and in the project."""

    def refusal(**settings: Any) -> str:
        with pytest.raises(SystemExit) as exit:
            run_cli(request.param, validate_arguments(finished_run.data, tmp_path / "refused", **settings), len)
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


@pytest.mark.parametrize("leaves_nothing", [False, True])
def test_a_validate_ends_with_its_score(
    leaves_nothing: bool,
    finished_run: FinishedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    arguments = validate_arguments(finished_run.data, tmp_path / "runs", artifact=finished_run.logs / "model.golf")
    if leaves_nothing:
        arguments = [word for word in arguments if not word.startswith("--trainer.default_root_dir")]
    cli = main(arguments)
    printed = capsys.readouterr().out
    result = summary_of(finished_run.folder)
    words = f"{result['val_bpb']:.6f} bits per byte, {result['val_loss']:.6f} nats per token, 999 tokens"
    assert printed.splitlines()[-1] == words
    assert "Validate metric" not in printed  # Lightning's table of the same
    assert (tmp_path / "runs").exists() != leaves_nothing
    assert not [str(warning.message) for warning in recwarn if "logger" in str(warning.message)]
    assert cli.trainer.callback_metrics["val_bpb"] == pytest.approx(result["val_bpb"], abs=1e-6)


def test_a_runs_configuration_names_its_classes_in_full(finished_run: FinishedRun) -> None:
    config = yaml.safe_load((finished_run.logs / "config.yaml").read_text())
    assert config["averaging"]["class_path"] == "components.averages.SnapshotMean"
    assert config["export"]["quantizer"]["class_path"] == "components.quantization.Nearest"
    assert config["scorer"]["class_path"] == "components.scorer.SlidingWindows"
    assert config["export"]["storage"][0] == {"names": "*", "storage": "float16", "at_most": 65536, "qat": False}


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
