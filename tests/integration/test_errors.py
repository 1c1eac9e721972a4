"""Bad input through the command line: one sentence that names the file or setting, and nothing half-written."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli import main
from components.artifact import read_artifact, write_artifact
from components.gpt import GPT
from components.public_artifact import write_public_artifact
from components.weights_file import write_weights
from tests.components.support import at_most_a_gibibyte_more
from tests.support import ROOT, TINY, fit_arguments, recipe_stored, run, tiny_network, validate_arguments, write_shard

# What Lightning creates before it asks for the data; none of it is a result.
LEFT_BY_LIGHTNING = (
    "events.out.tfevents.",
    "config.yaml",
    "hparams.yaml",
    "history.jsonl",
    "lock",
    "reached",
    "train.log",
)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[list[Any]], str]:
    """Run a command that must fail with a one-sentence error, and return the sentence."""

    def refused(arguments: list[Any]) -> str:
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        # A string is what the interpreter prints to stderr and then exits with 1.
        sentence = exit.value.code
        assert isinstance(sentence, str)
        assert sentence.startswith("error: ")
        assert "\n" not in sentence
        assert "Traceback" not in "".join(capfd.readouterr())
        runs = tmp_path / "runs"
        left = [path.name for path in runs.rglob("*") if path.is_file()] if runs.is_dir() else []
        assert [name for name in left if not name.startswith(LEFT_BY_LIGHTNING)] == []
        return sentence

    return refused


Refused = Callable[[list[Any]], str]


def train_shard(folder: Path) -> Path:
    return folder / "fineweb_train_000000.bin"


def val_shard(folder: Path) -> Path:
    return folder / "fineweb_val_000000.bin"


def test_no_data_folder(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **{"data.path": tmp_path / "nowhere"}))
    assert str(tmp_path / "nowhere") in sentence
    assert "python -m datamodules.download" in sentence
    assert "python -m datamodules.prepare" in sentence


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_shards(split: str, refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    for path in data_folder.glob(f"fineweb_{split}_*"):
        path.unlink()
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs"))
    assert f"no {split} shards" in sentence
    assert str(data_folder) in sentence
    assert "python -m datamodules.download" in sentence


@pytest.mark.parametrize("shard", [train_shard, val_shard])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"\x01" + data[1:], "is not a token shard (magic number"),
        (lambda data: data[:4] + b"\x02" + data[5:], "has format version 2"),
        (lambda data: data[:-1], "where its header gives"),
        (lambda data: data + b"\0\0", "where its header gives"),
        (lambda data: data[:100], "shorter than its 1024-byte header"),
        (lambda data: b"", "shorter than its 1024-byte header"),
    ],
    ids=["magic", "version", "truncated", "too long", "cut in the header", "empty"],
)
def test_a_damaged_shard(
    change: Callable[[bytes], bytes],
    reason: str,
    shard: Callable[[Path], Path],
    refused: Refused,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    path = shard(data_folder)
    path.write_bytes(change(path.read_bytes()))
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs"))
    assert str(path) in sentence
    assert reason in sentence
    assert "download or prepare it again" in sentence


# A step reads 1,032 ids, so the last of these positions is read in the ninth step.
@pytest.mark.parametrize(("shard", "position"), [(val_shard, 500), (train_shard, 20), (train_shard, 9000)])
def test_a_token_id_outside_the_vocabulary(
    shard: Callable[[Path], Path], position: int, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    ids = np.fromfile(shard(data_folder), dtype="<u2")[512:]
    ids[position] = 1024
    write_shard(shard(data_folder), ids)
    # Without checkpoints: one saved before the id is read would rightly be kept.
    settings = {"model.model_dim": 64, "model.num_heads": 2, "checkpoint.every_seconds": 0}
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **settings))
    assert f"token id 1024 at position {position} of {shard(data_folder)} is outside the vocabulary of 1024" in sentence


def test_a_tokenizer_of_another_vocabulary_size(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **{"model.vocab_size": 2048}))
    assert f"tokenizer {data_folder / 'tokenizer.model'} has 1024 pieces where 2048 are configured" in sentence


def test_no_tokenizer(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    missing, foreign = tmp_path / "missing.model", tmp_path / "foreign.model"
    foreign.write_bytes(b"not a model")
    for path, reason in ((missing, "no tokenizer at"), (foreign, "is not a SentencePiece model")):
        sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **{"data.tokenizer_path": path}))
        assert reason in sentence
        assert str(path) in sentence


def test_batch_tokens_that_do_not_divide(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **{"data.train_batch_tokens": 1000}))
    assert "train_batch_tokens 1000 is not a multiple of 8 micro-batches of sequences of 64 tokens" in sentence
    assert "multiple of 512" in sentence


def test_everything_that_is_wrong_is_named_at_once(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    wrong = {
        "data.tokenizer_path": tmp_path / "missing.model",
        "data.train_batch_tokens": 1000,
        "model.num_heads": 3,
        "model.bos_id": 1,
        "schedule.warmdown_fraction": 0.3,
        "scoring.seq_len": 16,
        "scoring.max_tokens": 1,
        "clock.max_seconds": -1,
    }
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **wrong))
    assert sentence.startswith("error: 6 things are wrong: (1) no tokenizer at ")
    for part in ("num_heads", "schedule.warmdown_steps 8 and", "clock.max_seconds is -1", "train_batch_tokens 1000"):
        assert part in sentence
    assert "scoring.stride is 32; set it from 1 to scoring.seq_len (16)" in sentence
    assert "scoring.max_tokens is 1" in sentence


def test_a_world_size_that_does_not_divide_8(data_folder: Path, tmp_path: Path) -> None:
    arguments = fit_arguments(data_folder, tmp_path / "runs", **{"trainer.devices": 3, "trainer.strategy": "ddp"})
    result = run("cli.py", *arguments)
    assert result.returncode == 1
    assert "error: a world of 3 ranks cannot share the 8 micro-batches of a step: use a number of devices that" in (
        result.stderr
    )
    assert "Traceback" not in result.stdout + result.stderr
    assert not list((tmp_path / "runs").rglob("summary.json"))


@pytest.mark.parametrize(
    ("setting", "value", "least"),
    [("stride", 0, 1), ("stride", 65, 1), ("stride", -1, 1), ("val_stride", -1, 0), ("val_stride", 65, 0)],
)
def test_a_stride_of_0_or_over_the_window(
    setting: str, value: int, least: int, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    arguments = fit_arguments(data_folder, tmp_path / "runs", **{f"scoring.{setting}": value})
    assert f"scoring.{setting} is {value}; set it from {least} to scoring.seq_len (64)" in refused(arguments)
    assert not (tmp_path / "runs").exists()


def test_fewer_than_two_validation_ids(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    write_shard(val_shard(data_folder), np.array([5]))
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs"))
    assert f"The validation shards in {data_folder} hold 1 ids" in sentence


def test_a_cap_of_one_validation_id(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **{"scoring.max_tokens": 1}))
    assert "scoring.max_tokens is 1; set it to 0 for all or to at least 2" in sentence


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "sound.golf"
    network = tiny_network()
    write_artifact(path, vars(network.config), stored(network))
    return path


def stored(network: GPT) -> dict[str, Any]:
    return recipe_stored(network.state_dict())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[: len(data) // 2], "is truncated"),
        (lambda data: data[:6], "is truncated"),
        (lambda data: b"", "is not an artifact"),
        (lambda data: b"PK\x03\x04" + data, "is not an artifact"),
        (lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:], "is damaged"),
        (lambda data: data + b"more", "is damaged"),
        (lambda data: b"\x28\xb5\x2f\xfd" + bytes(50), "is not a sound public artifact"),
    ],
    ids=["half", "six bytes", "empty", "foreign", "flipped bit", "longer", "foreign zstd"],
)
def test_a_corrupt_truncated_or_foreign_artifact(
    change: Callable[[bytes], bytes],
    reason: str,
    artifact: Path,
    refused: Refused,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "changed.golf"
    path.write_bytes(change(artifact.read_bytes()))
    sentence = refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path))
    assert str(path) in sentence
    assert reason in sentence
    assert not (tmp_path / "runs").exists()


def test_a_missing_artifact(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.golf", data_folder):
        sentence = refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path))
        assert f"{path} cannot be read" in sentence


def test_an_artifact_of_another_vocabulary(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.golf"
    network = tiny_network(vocab_size=512)
    write_artifact(path, vars(network.config), stored(network))
    sentence = refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path))
    assert f"tokenizer {data_folder / 'tokenizer.model'} has 1024 pieces where 512 are configured" in sentence


def test_a_public_artifact_of_another_network(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.int5int6.ptz"
    write_public_artifact(path, stored(tiny_network(vocab_size=512)))
    settings = {f"model.{name}": value for name, value in TINY.items()}
    sentence = refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path, **settings))
    assert f"{path} holds the weights of another network: tok_emb.weight is [512, 64] there and [1024, 64]" in sentence
    assert "model settings" in sentence


def test_an_artifact_of_an_unknown_network(artifact: Path, refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.golf"
    sound = read_artifact(artifact)
    write_artifact(path, {**sound.settings, "num_experts": 8}, sound.tensors)
    sentence = refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path))
    assert f"{path} describes a network that this program does not know" in sentence


# The last four could be built, at the price of up to petabytes, but are not those of the file's tensors.
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_heads": 0}, "model.num_heads is 0"),
        ({"num_layers": 10**9}, "make 1,000,000,000 steps through the layers"),
        ({"num_layers": 20_000}, "make 20,000 steps through the layers"),
        ({"model_dim": 10**9}, "model.model_dim is 1,000,000,000; set it to at most 1,048,576"),
        ({"num_loops": 10**9}, "steps through the layers; make it at most 1,024"),
        ({"num_layers": 2.0}, "model.num_layers is 2.0; set it to a whole number"),
        ({"num_layers": True}, "model.num_layers is True; set it to a whole number"),
        ({"num_layers": "three"}, "model.num_layers is 'three'; set it to a whole number"),
        ({"rope_base": -1.0}, "model.rope_base is -1.0; set it above 0"),
        ({"logit_softcap": 1e300}, "model.logit_softcap is 1e+300; set it to a finite number"),
        ({"num_layers": 1000}, "holds the weights of another network: blocks.10."),
        ({"model_dim": 1 << 20, "mlp_mult": 1}, "holds the weights of another network: bigram.proj.weight is [64, 16]"),
        ({"bigram_vocab_size": 1 << 20}, "holds the weights of another network: bigram.embed.weight is [64, 16]"),
        ({"gate_width": 64}, "holds the weights of another network: blocks.0.attn.gate.weight is none there"),
    ],
)
def test_an_artifact_of_an_impossible_network(
    settings: dict[str, Any], said: str, artifact: Path, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.golf"
    sound = read_artifact(artifact)
    write_artifact(path, {**sound.settings, **settings}, sound.tensors)
    with at_most_a_gibibyte_more():
        sentence = refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path))
    assert f"{path} " in sentence
    assert said in sentence


def test_an_artifact_whose_score_is_no_number(
    artifact: Path, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.golf"
    sound = read_artifact(artifact)
    write_artifact(path, {**sound.settings, "rope_base": 1e-300}, sound.tensors)
    said = "The network's score is nan, because its weights or settings are damaged"
    assert said in refused(validate_arguments(data_folder, tmp_path / "runs", artifact=path))


def test_a_network_that_no_artifact_can_hold(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    settings = {"model.model_dim": 8192, "model.num_layers": 1000}
    with at_most_a_gibibyte_more():
        sentence = refused(fit_arguments(data_folder, tmp_path / "runs", **settings))
    assert "values and an artifact holds 64,000,000 at most; make model.model_dim" in sentence


@pytest.mark.parametrize("option", ["artifact", "weights", "ckpt_path"])
def test_a_pipe_for_a_file(option: str, refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    sentence = refused(validate_arguments(data_folder, tmp_path / "runs", **{option: tmp_path / "pipe"}))
    assert str(tmp_path / "pipe") in sentence


def test_a_pipe_for_a_shard(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    val_shard(data_folder).unlink()
    os.mkfifo(val_shard(data_folder))
    sentence = refused(fit_arguments(data_folder, tmp_path / "runs"))
    assert f"shard {val_shard(data_folder)} is a pipe or a device" in sentence


@pytest.mark.parametrize(
    "setting",
    ["artifact", "weights", "ckpt_path", "data.path", "data.tokenizer_path", "trainer.default_root_dir"],
)
def test_a_nul_in_a_path(setting: str, refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    section, _, name = setting.rpartition(".")
    value = {name: "a\0b"}
    (tmp_path / "nul.yaml").write_text(json.dumps({section: value} if section else value))
    arguments = validate_arguments(data_folder, tmp_path / "runs")
    sentence = refused([*arguments, f"--config={tmp_path / 'nul.yaml'}"])
    assert f"{setting} is 'a\\x00b', which holds a character that no file's name can have" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_record_run_on_a_machine_without_a_gpu(command: str, refused: Refused, tmp_path: Path) -> None:
    config = ROOT / "configs" / "record_10l.yaml"
    sentence = refused([command, "--config", config, f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    assert "trainer.accelerator asks for a GPU and this machine has none" in sentence
    assert "--config configs/laptop.yaml for a small network" in sentence
    assert "--config configs/cpu.yaml" in sentence
    assert not (tmp_path / "runs").exists()


def test_more_gpus_than_the_machine_has(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = ROOT / "configs" / "record_10l.yaml"
    sentence = refused(["fit", "--config", config, f"--trainer.default_root_dir={tmp_path / 'runs'}"])
    assert "trainer.devices asks for 8 GPUs and this machine has 1" in sentence
    assert "configs/one_gpu.yaml" in sentence


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_zstandard_is_missing(
    command: str, artifact: Path, refused: Refused, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)  # makes its import fail
    fit, validate = fit_arguments(data_folder, tmp_path / "runs"), validate_arguments(data_folder, tmp_path / "runs")
    sentence = refused(fit if command == "fit" else [*validate, f"--artifact={artifact}"])
    assert "zstandard, which is not installed; run `pip install zstandard`" in sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "--model.num_experts=8"], "There is no setting model.num_experts"),
        (["fit", "--model.num_layers=many"], "model.num_layers"),
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--artifact=x.golf"], "There is no setting artifact"),
        (["train"], "'train'"),
        ([], "subcommand"),
    ],
)
def test_an_unknown_option_fails_with_the_parsers_own_message(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    last = capsys.readouterr().err.split("error: ")[-1]
    assert said in last


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:antigravity"])
def test_a_configuration_with_python_tags_runs_nothing(
    tag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, mark = tmp_path / "tags.yaml", tmp_path / "owned"
    config.write_text(f"trainer:\n  default_root_dir: !!python/{tag} [{mark}]\n")
    with pytest.raises(SystemExit) as exit:
        main(["fit", f"--config={config}"])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "could not determine a constructor for the tag" in said
    assert "Traceback" not in said
    assert not mark.exists()
    assert "antigravity" not in sys.modules


def test_no_configuration_can_ask_for_a_checkpoints_code_to_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unsafe.yaml").write_text("weights_only: false\n")
    with pytest.raises(SystemExit) as exit:
        main(["validate", f"--config={tmp_path / 'unsafe.yaml'}"])
    assert exit.value.code == 2
    assert "weights_only" in capsys.readouterr().err.split("error: ")[-1]


@pytest.mark.parametrize("command", [fit_arguments, validate_arguments])
@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_or_foreign_checkpoint(
    missing: bool, command: Callable[..., list[str]], refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "some.ckpt"
    contents: list[Callable[[], object]] = [
        lambda: path.write_bytes(b"not a checkpoint"),
        lambda: path.write_bytes(b""),
        lambda: torch.save([1, 2], path),
        lambda: torch.save({"state_dict": {}}, path),
        lambda: path.write_bytes(path.read_bytes()[:300]),
    ]
    for write in [lambda: None] if missing else contents:
        write()
        sentence = refused(command(data_folder, tmp_path / "runs", ckpt_path=path))
        assert str(path) in sentence
        assert ("There is no checkpoint file" if missing else "is not a checkpoint") in sentence
        assert "--ckpt_path" in sentence
    assert not (tmp_path / "runs").exists()


def test_an_artifact_and_a_checkpoint_at_once(
    artifact: Path, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    arguments = validate_arguments(data_folder, tmp_path / "runs", artifact=artifact, ckpt_path=tmp_path / "some.ckpt")
    assert "--artifact and --ckpt_path both name weights" in refused(arguments)


def test_a_runs_folder_that_is_a_file(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        sentence = refused(fit_arguments(data_folder, folder))
        assert f"The runs folder {folder} cannot be created" in sentence
        assert "trainer.default_root_dir" in sentence


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("trainer.max_steps", -1, "The run has no end: set clock.max_seconds or trainer.max_steps."),
        ("trainer.accumulate_grad_batches", 3, "trainer.accumulate_grad_batches is 3, but 8 micro-batches over 1"),
        ("data.train_seq_len", 0, "data.train_seq_len is 0"),
        ("data.train_micro_batches", 0, "data.train_micro_batches is 0"),
        ("clock.max_seconds", -1, "clock.max_seconds is -1"),
        ("late_qat.start_fraction", 2, "late_qat.start_fraction is 2"),
        ("averaging.every_n_steps", 0, "averaging.every_n_steps is 0"),
        ("warmup.steps", 1, "warmup.steps is 1"),
        ("schedule.warmdown_steps", -1, "schedule.warmdown_steps is -1"),
        ("export.keep_last_k_fp16", -1, "export.keep_last_k_fp16 is -1"),
        ("export.storage+", '{"names": "head.*", "storage": "int8"}', "The storage rule for head.* matches no weight"),
        ("model.num_heads", 3, "model.model_dim 272 over model.num_heads 3"),
    ],
)
def test_impossible_settings(
    setting: str, value: int | str, said: str, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    assert said in refused(fit_arguments(data_folder, tmp_path / "runs", **{setting: value}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"model.num_loops": 1, "model.loop_start": 1, "model.loop_end": 2},
            "model.loop_start 1 to model.loop_end 2 goes beyond layers 0 to 1",
        ),
        (
            {"model.num_loops": 1, "model.loop_start": 1, "model.loop_end": 0},
            "model.loop_end 0 is before model.loop_start 1",
        ),
        ({"model.rope_dims": 70}, "model.rope_dims is 70; set it to an even number of the 68 channels of a head"),
        (
            {"export.quantizer": "GPTQ", "export.quantizer.calibration_batches": 0, "late_qat.start_fraction": 1},
            "export.quantizer.calibration_batches is 0, and GPTQ cannot round without calibration",
        ),
        (
            {"clock.max_seconds": 10, "clock.reserve_seconds": 12},
            "clock.reserve_seconds is 12.0; set it from 0 to below clock.max_seconds 10.0",
        ),
        (
            {"scorer": "ScoreFirstTraining", "scorer.chunk_tokens": 63},
            "scorer.chunk_tokens is 63, too few for a sequence of scoring.seq_len 64",
        ),
        ({"trainer.logger": "WandbLogger"}, "needs a package that is not installed (Requirement 'wandb"),
    ],
    ids=["loop outside", "loop ends early", "rope", "calibration", "reserve", "chunk", "W&B"],
)
def test_impossible_settings_of_a_rung(
    settings: dict[str, Any], said: str, refused: Refused, data_folder: Path, tmp_path: Path
) -> None:
    if "trainer.logger" in settings and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    assert said in refused(fit_arguments(data_folder, tmp_path / "runs", **settings))


def test_float_weights_of_other_shapes(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    network = tiny_network()
    for settings in ({**vars(network.config), "model_dim": 128}, {}):
        write_weights(path, settings, network.state_dict())
        sentence = refused(validate_arguments(data_folder, tmp_path / "runs", weights=path))
        assert f"{path} " in sentence
        assert "holds the weights of another network: " in sentence


def test_weights_that_cannot_be_exported(refused: Refused, data_folder: Path, tmp_path: Path) -> None:
    settings = {"model.model_dim": 64, "model.num_heads": 2, "trainer.max_steps": 2, "late_qat.start_fraction": 1}
    arguments = fit_arguments(data_folder, tmp_path / "runs", **settings, **{"model.optimizer.matrix_lr": 1e30})
    sentence = refused(arguments)
    assert (
        "The network's score is nan, because its weights or settings are damaged or its training diverged" in sentence
    )
    assert "lower learning rate" in sentence


def test_a_process_prints_only_the_sentence_and_exits_with_1(tmp_path: Path) -> None:
    missing = tmp_path / "tokenizer.model"
    result = run("cli.py", "fit", "--trainer.accelerator=cpu", f"--data.tokenizer_path={missing}")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: no tokenizer at {missing}: give the .model")
    assert "Traceback" not in result.stdout + result.stderr
