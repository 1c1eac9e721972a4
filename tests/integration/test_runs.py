"""Whole runs through the command line: every phase, fresh processes, several ranks, resume."""

import subprocess
from pathlib import Path

import pytest
import torch

from cli import main
from components.artifact import read_artifact
from tests.support import (
    GOLDEN,
    ROOT,
    SAMPLE,
    fit_arguments,
    needs_compiler,
    needs_golden,
    needs_sample,
    run,
    scalars_of,
    summary_of,
    validate_arguments,
)

SUMMARY_KEYS = {
    "val_loss",
    "val_bpb",
    "pre_quant_val_loss",
    "pre_quant_val_bpb",
    "step_stop",
    "wallclock_seconds",
    "eval_time_seconds",
    "bytes_model",
    "bytes_code",
    "bytes_total",
    "tokens_scored",
    "bytes_scored",
    "windows",
    "num_params",
    "seed",
    "world_size",
    "device",
    "tokens_seen",
    "qat_start_step",
    "qat_start_seconds",
    "qat_steps",
    "snapshots_averaged",
    "python",
    "torch",
    "lightning",
}


def test_a_run_goes_through_every_phase_and_its_file_scores_the_same_in_a_fresh_process(
    data_folder: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    main(fit_arguments(data_folder, runs))
    summary = summary_of(runs)
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["phases_missed"] == []
    assert summary["step_stop"] == 12
    assert summary["warmdown_start_step"] == 5  # at step 12 - 8 = 4 the multiplier is still 1
    assert (summary["qat_start_step"], summary["qat_steps"]) == (9, 3)  # 8 / 12 is under 0.7, 9 / 12 is not
    assert summary["snapshots_averaged"] == 2  # after steps 10 and 12, whose multipliers were 3/8 and 1/8
    assert summary["tokens_seen"] == 12 * 1024
    assert summary["tokens_scored"] == 999
    assert summary["bytes_total"] == summary["bytes_model"] + summary["bytes_code"]
    # 8 spans of 128 + 1 ids per step
    assert summary["train_positions"] == [0, 12 * 8 * 129]
    assert summary["train_shards"] == ["fineweb_train_000000.bin"]
    log = (runs / "lightning_logs" / "version_0" / "train.log").read_text().splitlines()
    assert sum(line.startswith("step ") for line in log) == 12
    for event in ("late QAT from step 9", "snapshot 2 at step 12", "validation step 6 val_loss", "stopped at step 12"):
        assert any(line.startswith(event) for line in log), event
    assert log[-1].startswith(
        f"artifact val_loss {summary['val_loss']:.8f} val_bpb {summary['val_bpb']:.8f} scored in "
    )

    artifact = Path(summary["artifact"])
    assert summary["bytes_model"] == artifact.stat().st_size
    assert {str(t.storage) for t in read_artifact(artifact).tensors.values()} == {"int5", "int6", "float16"}

    result = run("cli.py", *validate_arguments(data_folder, tmp_path / "validate", artifact=artifact))
    assert result.returncode == 0, result.stderr
    again = summary_of(tmp_path / "validate")
    assert again["val_bpb"] == pytest.approx(summary["val_bpb"], abs=1e-6)
    assert again["windows"] == summary["windows"]

    assert scalars_of(runs, "phase/late_qat")[9] == 0
    assert scalars_of(runs, "phase/late_qat")[10] == 1
    rates = scalars_of(runs, "lr/matrices")
    assert [round(rates[step] / 0.025, 3) for step in (1, 5, 6, 12)] == [1, 1, 0.875, 0.125]
    assert scalars_of(runs, "momentum")[12] == pytest.approx(0.92 + 0.07 * 11 / 1500)
    for tag in ("loss/train", "speed/elapsed_seconds", "speed/tokens_per_second", "loss/val", "bits_per_byte/val"):
        assert scalars_of(runs, tag)
    assert scalars_of(runs, "quantization/error_int5")[12] > scalars_of(runs, "quantization/error_int6")[12] > 0
    assert scalars_of(runs, "result/bits_per_byte")[12] == pytest.approx(summary["val_bpb"])


def test_a_checkpoint_is_scored_by_validate(data_folder: Path, tmp_path: Path) -> None:
    cli = main(fit_arguments(data_folder, tmp_path / "runs", **{"averaging.start_multiplier": 0}))
    [checkpoint] = (tmp_path / "runs").rglob("*.ckpt")
    main(validate_arguments(data_folder, tmp_path / "validate", ckpt_path=checkpoint))
    validated = summary_of(tmp_path / "validate")
    assert validated["val_bpb"] == pytest.approx(summary_of(tmp_path / "runs")["pre_quant_val_bpb"], abs=1e-6)
    assert validated["num_params"] == sum(p.numel() for p in cli.model.parameters())


@needs_golden
@needs_sample
def test_validate_scores_the_public_artifact_as_the_public_script_does(tmp_path: Path) -> None:
    import json

    settings = json.loads((GOLDEN / "config.json").read_text())
    foreign = {"keep_last_k_fp16", "train_seq_len", "seed"}
    main(
        [
            "validate",
            f"--artifact={GOLDEN / 'artifact.int5int6.ptz'}",
            f"--data.path={SAMPLE / 'datasets' / 'fineweb10B_sp1024'}",
            f"--data.tokenizer_path={SAMPLE / 'tokenizers' / 'fineweb_1024_bpe.model'}",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.accelerator=cpu",
            *(f"--model.{name}={value}" for name, value in settings.items() if name not in foreign),
            *("--scoring.seq_len=256", "--scoring.stride=64", "--scoring.max_tokens=4097"),
        ]
    )
    [golden] = [case for case in json.loads((GOLDEN / "eval.json").read_text())["roundtrip"] if case["tokens"] == 4097]
    assert summary_of(tmp_path)["val_bpb"] == pytest.approx(golden["val_bpb"], abs=1e-4)
    assert summary_of(tmp_path)["windows"] == golden["windows"]


def _two_ranks(launcher: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    arguments = [*arguments, "--trainer.strategy=ddp", "--trainer.devices=2"]
    if launcher == "torchrun":
        return run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "cli.py", *arguments)
    return run("cli.py", *arguments)


@pytest.mark.parametrize("launcher", ["lightning", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_ranks_train_and_score_as_one(launcher: str, data_folder: Path, tmp_path: Path) -> None:
    main(fit_arguments(data_folder, tmp_path / "one"))
    two_ranks = fit_arguments(data_folder, tmp_path / "two", **{"trainer.val_check_interval": 24})
    result = _two_ranks(launcher, two_ranks)
    assert result.returncode == 0, result.stderr
    one, two = summary_of(tmp_path / "one"), summary_of(tmp_path / "two")
    assert two["world_size"] == 2
    for curve in ("loss/train", "loss/val"):
        values = scalars_of(tmp_path / "one", curve)
        assert len(values) >= 2
        # Newton-Schulz rounds to bfloat16, and batches of another size round differently.
        assert scalars_of(tmp_path / "two", curve) == pytest.approx(values, abs=5e-3)
    assert scalars_of(tmp_path / "two", "loss/train")[1] == pytest.approx(scalars_of(tmp_path / "one", "loss/train")[1])
    for key in ("val_bpb", "pre_quant_val_bpb"):
        assert two[key] == pytest.approx(one[key], abs=5e-3)
    for key in ("tokens_scored", "bytes_scored", "windows", "snapshots_averaged", "qat_start_step", "tokens_seen"):
        assert two[key] == one[key]

    artifact = Path(two["artifact"])
    result = run("cli.py", *validate_arguments(data_folder, tmp_path / "validate", artifact=artifact))
    assert result.returncode == 0, result.stderr
    assert summary_of(tmp_path / "validate")["val_bpb"] == pytest.approx(two["val_bpb"], abs=1e-6)


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_step_within_the_budget(data_folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from cli import main; t = main(sys.argv[1:]).trainer; "
        "Path(__file__).with_name(f'rank_{t.global_rank}.step').write_text(str(t.global_step))"
    )
    arguments = fit_arguments(data_folder, tmp_path, **{"trainer.max_steps": 100000, "clock.max_seconds": 6})
    file = tmp_path / "report.py"
    file.write_text(script)
    result = run(str(file), *arguments, "--trainer.strategy=ddp", "--trainer.devices=2", PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    stops = {file.stem: file.read_text() for file in tmp_path.glob("rank_*.step")}
    assert stops.keys() == {"rank_0", "rank_1"}
    assert len(set(stops.values())) == 1
    assert str(summary_of(tmp_path)["step_stop"]) in stops.values()


@pytest.mark.parametrize("stop", [pytest.param(5, marks=pytest.mark.slow), 10])
def test_a_resumed_run_ends_with_the_same_weights(stop: int, data_folder: Path, tmp_path: Path) -> None:
    # After 5 steps only training has happened; after 10, QAT is on and a snapshot has been taken.
    whole = main(fit_arguments(data_folder, tmp_path / "whole"))
    checkpoint = [
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.every_n_train_steps={stop}",
        "--trainer.callbacks.filename={step}",
        "--trainer.callbacks.save_top_k=-1",
    ]
    main([*fit_arguments(data_folder, tmp_path / "part"), *checkpoint])
    [file] = (tmp_path / "part").rglob(f"step={stop}.ckpt")
    resumed = main([*fit_arguments(data_folder, tmp_path / "resumed"), f"--ckpt_path={file}"])
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    one, two = summary_of(tmp_path / "whole"), summary_of(tmp_path / "resumed")
    for key in ("val_bpb", "snapshots_averaged", "qat_start_step", "qat_steps", "warmdown_start_step", "step_stop"):
        assert one[key] == two[key]


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_ranks(data_folder: Path, tmp_path: Path) -> None:
    # 5 steps of two ranks are 20 micro-batches per rank, not a multiple of the 8 that one rank accumulates.
    two_ranks = fit_arguments(data_folder, tmp_path / "two", **{"trainer.val_check_interval": 24})
    checkpoint = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=5"]
    result = _two_ranks("lightning", [*two_ranks, *checkpoint, "--trainer.callbacks.save_top_k=-1"])
    assert result.returncode == 0, result.stderr
    [file] = (tmp_path / "two").rglob("*step=5.ckpt")
    main([*fit_arguments(data_folder, tmp_path / "one"), f"--ckpt_path={file}"])
    one, two = summary_of(tmp_path / "one"), summary_of(tmp_path / "two")
    losses, whole = (scalars_of(tmp_path / name, "loss/train") for name in ("one", "two"))
    assert losses == pytest.approx({step: whole[step] for step in range(6, 13)}, abs=5e-3)
    assert one["train_positions"] == [5 * 8 * 129, two["train_positions"][1]]
    assert one["snapshots_averaged"] == two["snapshots_averaged"]


@needs_compiler
def test_a_compiled_run_switches_to_qat_without_further_compilation(data_folder: Path, tmp_path: Path) -> None:
    # CompileWarmup sets fail_on_recompile, so a missing graph would end the run with an error.
    settings = {"model.num_layers": 1, "trainer.max_steps": 6, "schedule.warmdown_steps": 4}
    main(fit_arguments(data_folder, tmp_path / "eager", **settings))
    main(fit_arguments(data_folder, tmp_path / "compiled", **settings, **{"model.compile": "true"}))
    eager, compiled = (scalars_of(tmp_path / name, "loss/train") for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, abs=5e-3)
    assert summary_of(tmp_path / "compiled")["qat_steps"] > 0
