"""Every shipped YAML is parsed by the real classes, shows every hyperparameter, and agrees with the recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli import main
from components.gpt import GPT, GPTConfig
from components.storage import StorageRule, assign
from tests.support import ROOT

CONFIGS = ROOT / "configs"
RUNGS = ("record_11l_ema", "record_sp4096", "record_sp8192_loop", "record_sp8192_ttt", "record_sp8192_gates")
COMPLETE = ("record_10l", *RUNGS)
OVERLAYS = ("demo", "one_gpu", "cpu", "laptop", "fused_mlp", "tiny")
TINY_RUNGS = tuple(f"tiny_{name}" for name in RUNGS)
# Not hyperparameters: options that belong to one command.
COMMAND_OPTIONS = {"ckpt_path", "weights_only", "artifact"}


def parse(capsys: pytest.CaptureFixture[str], command: str, *names: str) -> dict[str, Any]:
    """The whole configuration from these files, as ``--print_config`` prints it."""
    files = [f"--config={CONFIGS / name}.yaml" for name in names]
    with pytest.raises(SystemExit) as exit:
        main([command, *files, "--print_config"])
    assert exit.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def written(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_every_file_is_known_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*")} == {*COMPLETE, *OVERLAYS, *TINY_RUNGS}


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize(
    "names",
    [
        *((name,) for name in COMPLETE),
        *(("record_10l", name) for name in OVERLAYS),
        *((name, "tiny", f"tiny_{name}") for name in RUNGS),
    ],
)
def test_each_file_parses_and_sets_every_value(
    names: tuple[str, ...], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = dict(leaves(parse(capsys, command, *names)))
    for name, value in leaves(written(names[-1])):
        if name != "trainer.callbacks":
            assert parsed[name] == value, name


def test_the_recipes_file_shows_every_hyperparameter(capsys: pytest.CaptureFixture[str]) -> None:
    name = "record_10l"  # where a new setting's default is written, for all rungs
    parsed = {key for key, _ in leaves(parse(capsys, "fit", name)) if not key.startswith("trainer.")}
    assert {"model.optimizer.matrix_lr", "scoring.stride", "late_qat.start_fraction"} < parsed
    assert parsed - COMMAND_OPTIONS == {key for key, _ in leaves(written(name)) if not key.startswith("trainer.")}


def test_an_unknown_hyperparameter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "misspelt.yaml"
    file.write_text("schedule:\n  warmdown_step: 50\n")
    with pytest.raises(SystemExit) as exit:
        main(["fit", f"--config={CONFIGS / 'record_10l.yaml'}", f"--config={file}", "--print_config"])
    assert exit.value.code == 2
    assert "warmdown_step" in capsys.readouterr().err


def test_overlays_change_the_machine_and_not_the_recipe() -> None:
    assert set(written("cpu")) == {"trainer"}
    one_gpu = written("one_gpu")
    assert set(one_gpu) == {"trainer", "clock"}
    # One GPU instead of eight takes eight times as long, and validates after the same number of steps.
    record = written("record_10l")
    assert one_gpu["clock"] == {"max_seconds": 8 * record["clock"]["max_seconds"]}
    assert one_gpu["trainer"]["val_check_interval"] == 8 * record["trainer"]["val_check_interval"]


@pytest.mark.parametrize("name", COMPLETE)
def test_trainer_settings_that_the_stream_and_the_clock_need(name: str) -> None:
    trainer = written(name)["trainer"]
    assert trainer["max_epochs"] == -1  # the stream is endless
    assert trainer["use_distributed_sampler"] is False  # ranks slice it themselves
    assert trainer["check_val_every_n_epoch"] is None
    assert "accumulate_grad_batches" not in trainer  # follows from the number of ranks
    assert written(name)["checkpoint"]["every_seconds"] == 60


# Copied by hand from the published recipe, never from the file.
RECIPE = {
    "model.vocab_size": None,  # the tokenizer's, which has 1,024 pieces
    "model.bos_id": None,
    "model.model_dim": 512,
    "model.num_layers": 10,
    "model.num_heads": 8,
    "model.num_kv_heads": 4,
    "model.mlp_mult": 3,
    "model.tie_embeddings": True,
    "model.tied_embed_init_std": 0.005,
    "model.bigram_vocab_size": 4096,
    "model.bigram_dim": 128,
    "model.rope_base": 10000,
    "model.qk_gain_init": 1.5,
    "model.logit_softcap": 30,
    "model.output_proj_init": "zero",
    "model.smear": "static",
    "model.smear_across_documents": True,
    "model.smear_width": 12,
    "model.rope_dims": 0,
    "model.xsa_last_n": 0,
    "model.ln_scale": False,
    "model.mlp_leak": 0,
    "model.skip_gates": False,
    "model.loop_start": 0,
    "model.loop_end": 0,
    "model.num_loops": 0,
    "model.parallel_from": None,
    "model.gate_width": 0,
    "model.optimizer.matrix_lr": 0.025,
    "model.optimizer.matrix_weight_decay": 0.04,
    "model.optimizer.newton_schulz_steps": 5,
    "model.optimizer.newton_schulz_coefficients": "jordan",
    "model.optimizer.row_normalize": False,
    "model.optimizer.adam_beta1": 0.9,
    "model.optimizer.adam_beta2": 0.95,
    "model.optimizer.adam_eps": 1e-8,
    "model.optimizer.embedding_weight_decay": 0.01,
    "model.optimizer.scalar_weight_decay": 0.01,
    "model.optimizer.embedding_lr": 0.03,
    "model.optimizer.scalar_lr": 0.02,
    "model.optimizer.untied_embedding_lr": 0.6,
    "model.optimizer.head_lr": 0.008,
    "schedule.momentum_start": 0.92,
    "schedule.momentum_end": 0.99,
    "schedule.momentum_warmup_steps": 1500,
    "schedule.warmdown_steps": 3000,
    "schedule.warmdown_fraction": 0.0,
    "schedule.min_multiplier": 0.0,
    "trainer.gradient_clip_val": 0.3,
    "trainer.max_steps": 20000,
    "trainer.devices": 8,
    "trainer.precision": "bf16-mixed",
    "data.train_batch_tokens": 786432,
    "data.train_seq_len": 2048,
    "data.train_micro_batches": 8,
    "clock.max_seconds": 600,
    "clock.reserve_seconds": 0,
    "warmup.steps": 20,
    "averaging.class_path": "components.averages.SnapshotMean",
    "averaging.init_args.start_multiplier": 0.5,
    "averaging.init_args.every_n_steps": 50,
    "averaging.init_args.only_under_qat": False,
    "late_qat.start_fraction": 0.85,
    "loops.start_fraction": 0.0,
    "export.keep_last_k_fp16": 1,
    "export.storage": [
        {"names": "*", "storage": "float16", "at_most": 65_536, "qat": False},
        {"names": "tok_emb.weight", "storage": "float16", "at_most": 0, "qat": False},
        {"names": "bigram.*.weight", "storage": "int8", "at_most": 0, "qat": False},
        {"names": "lm_head.weight", "storage": "int8", "at_most": 0, "qat": False},
        {"names": "blocks.*.mlp.*.weight", "storage": "int5", "at_most": 0, "qat": True},
        {"names": "blocks.*.attn.*.weight", "storage": "int6", "at_most": 0, "qat": True},
    ],
    "export.quantizer.class_path": "components.quantization.Nearest",
    "export.quantizer.init_args.row_max_floor": 0,
    "scoring.seq_len": 2048,
    "scoring.stride": 64,
    "scoring.val_stride": 0,  # whole windows
    "scoring.max_tokens": 0,
    "seed_everything": 1337,
}


def test_the_record_run_is_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = dict(leaves(parse(capsys, "fit", "record_10l")))
    assert {name: parsed[name] for name in RECIPE} == RECIPE
    settings = {name for name in parsed if name.split(".")[0] in ("model", "schedule", "averaging", "late_qat")}
    assert settings - RECIPE.keys() == {
        "model.compile",
        "model.fused_mlp",
    }  # no setting of the recipe's parts is forgotten here


def test_the_record_run_compiles_and_is_ddp() -> None:
    record = written("record_10l")
    assert record["model"]["compile"] is True
    assert record["trainer"]["accelerator"] == "gpu"
    assert record["trainer"]["strategy"]["class_path"] == "lightning.pytorch.strategies.DDPStrategy"


def test_the_demo_is_the_record_at_a_small_scale(capsys: pytest.CaptureFixture[str]) -> None:
    demo = dict(leaves(parse(capsys, "fit", "record_10l", "demo")))
    for name in ("clock.max_seconds", "model.model_dim", "model.num_layers", "data.train_batch_tokens"):
        assert 0 < demo[name] < RECIPE[name], name
    assert demo["model.compile"] is False  # needs no compiler
    assert demo["trainer.accelerator"] == "cpu"
    assert not [name for name, _ in leaves(written("demo")) if name.startswith(("late_qat.", "model.optimizer."))]


@pytest.mark.parametrize("overlay", ["demo", "laptop"])
def test_a_small_run_keeps_every_phase_and_storage_of_the_record(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = parse(capsys, "fit", "record_10l", overlay)
    small = dict(leaves(parsed))
    # No phase may need a number of steps that a slow machine does not take.
    assert small["schedule.warmdown_steps"] == 0
    assert 0 < small["schedule.warmdown_fraction"] < 1
    assert small["schedule.momentum_start"] < small["schedule.momentum_end"]
    assert small["late_qat.start_fraction"] == RECIPE["late_qat.start_fraction"]
    assert small["averaging.class_path"] == RECIPE["averaging.class_path"]
    assert small["averaging.init_args.start_multiplier"] > 0
    first, *others = small["export.storage"]
    assert {**first, "at_most": 65_536} == RECIPE["export.storage"][0]
    assert others == RECIPE["export.storage"][1:]
    settings = {k: v for k, v in parsed["model"].items() if k in GPTConfig.__dataclass_fields__}
    with torch.device("meta"):
        network = GPT(GPTConfig(**{**settings, "vocab_size": 1024, "bos_id": 1}))
    rules = assign(network.shapes(), [StorageRule(**rule) for rule in parsed["export"]["storage"]])
    assert {rule.storage for rule in rules.values()} == {"int5", "int6", "int8", "float16"}


def test_the_laptop_runs_the_recipe_for_ten_minutes_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    laptop = dict(leaves(parse(capsys, "fit", "record_10l", "laptop")))
    assert laptop["clock.max_seconds"] == 600
    assert (laptop["trainer.accelerator"], laptop["trainer.devices"], laptop["trainer.strategy"]) == ("auto", 1, "auto")
    assert laptop["model.compile"] is False
    assert laptop["trainer.max_steps"] == -1  # a GPU takes more steps in the time than the record
    changed = {name.split(".")[0] for name, _ in leaves(written("laptop"))}
    assert not changed & {"late_qat", "clock", "checkpoint"}


def test_shared_overlays_set_no_settings_of_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one_gpu", "cpu", "tiny"):
        assert not [key for key, _ in leaves(written(name)) if ".init_args." in key and not key.startswith("trainer.")]


# Of the published logs, less what the project leaves out on purpose: R2 without its value embedding.
PARAMETERS = {
    "record_10l": (1024, 24_730_705),
    "record_11l_ema": (1024, 26_829_913),
    "record_sp4096": (4096, 33_844_312),
    "record_sp8192_loop": (8192, 35_943_512),
    "record_sp8192_ttt": (8192, 35_944_536),
    "record_sp8192_gates": (8192, 35_945_605),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_each_record_has_the_published_number_of_parameters_and_a_rule_for_each(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = parse(capsys, "fit", name)
    vocab_size, num_params = PARAMETERS[name]
    settings = {k: v for k, v in parsed["model"].items() if k in GPTConfig.__dataclass_fields__}
    with torch.device("meta"):
        network = GPT(GPTConfig(**{**settings, "vocab_size": vocab_size, "bos_id": 1}))
    assert sum(p.numel() for p in network.parameters()) == num_params
    rules = assign(network.shapes(), [StorageRule(**rule) for rule in parsed["export"]["storage"]])
    large = {rules[n].storage for n, shape in network.shapes().items() if shape.numel() > 65_536}
    assert large == ({"int5", "int6", "int8", "float16"} if name == "record_10l" else {"int6", "int8"})
