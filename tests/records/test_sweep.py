"""The sweep, with a stand-in for cli.py that immediately writes what a run leaves behind."""

import json
import math
from pathlib import Path

import pytest

from components.errors import UserError
from records import sweep
from records.baseline import baseline_losses
from records.statistics import compare, describe

STAND_IN = """
import json, os, sys
from pathlib import Path
command = sys.argv[1]
given = dict(a[2:].split("=", 1) for a in sys.argv[2:] if "=" in a)
seed, runs = int(given["seed_everything"]), Path(given["trainer.default_root_dir"])
with Path(given["config"]).with_name("calls").open("a") as calls:
    calls.write(f"{command} {seed} {given.get('trainer.devices')} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
broken = Path(given["config"]).with_name("broken")
if broken.exists() and broken.read_text() == f"{command} {seed}":
    sys.exit("error: the disk is full")
folder = runs / "lightning_logs" / f"version_{len(list(runs.glob('lightning_logs/*')))}"
folder.mkdir(parents=True)
loss = 2 + seed / 1000
facts = {"val_loss": loss, "val_bpb": loss / 2, "eval_time_seconds": 7.0, "seed": seed}
if command == "fit":
    (folder / "model.golf").write_bytes(b"model")
    (folder / "config.yaml").write_text("")
    (folder / "train.log").write_text("step 1 train_loss 3.0 elapsed 1.0 s\\n")
    facts |= {"step_stop": 1, "artifact": "model.golf", "wallclock_seconds": 5.0, "bytes_model": 5, "bytes_code": 4,
              "bytes_total": 9, "pre_quant_val_loss": 1.9, "pre_quant_val_bpb": 0.95}
elif "drift" in given:
    facts["val_bpb"] += 0.01
(folder / "summary.json").write_text(json.dumps(facts))
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(sweep, "CLI", stand_in)
    config = tmp_path / "run.yaml"
    config.write_text("seed_everything: 1\n")
    return config


def sweep_seeds(config: Path, *words: str) -> None:
    sweep.main([f"--config={config}", f"--out={config.parent / 'sweep'}", *words])


def calls(config: Path) -> list[str]:
    return [line.rsplit(" ", 2)[0] for line in config.with_name("calls").read_text().splitlines()]


def saved(config: Path) -> dict:
    return json.loads((config.parent / "sweep" / "sweep.json").read_text())


def test_every_seed_is_fitted_validated_and_reported(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_seeds(config, "--seeds", "1", "2", "3", "--baseline", "2.010", "2.011", "2.0125")
    assert calls(config) == [f"{command} {seed}" for seed in (1, 2, 3) for command in ("fit", "validate")]
    content = saved(config)
    losses = [2.001, 2.002, 2.003]
    assert [r["val_loss"] for r in content["seed_results"]] == pytest.approx(losses)
    assert content["val_loss"]["mean"] == pytest.approx(2.002)
    assert content["val_loss"]["deviation"] == pytest.approx(0.001)
    assert content["val_loss"]["interval"] == pytest.approx(4.302653 * 0.001 / math.sqrt(3))  # Student's t, 2 degrees
    comparison = compare(losses, [2.010, 2.011, 2.0125])
    assert content["baseline"]["p_margin"] == pytest.approx(comparison.p_margin)
    assert content["baseline"]["rule_holds"] is comparison.holds
    assert content["baseline"]["improvement_bpb"] == pytest.approx(comparison.improvement / 2)
    assert content["failures"] == {}
    printed = capsys.readouterr().out
    assert "2.001000" in printed
    assert "Welch" in printed
    assert (config.parent / "sweep" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_seeds_are_not_repeated_unless_asked(config: Path) -> None:
    sweep_seeds(config, "--seeds", "1", "2")
    sweep_seeds(config, "--seeds", "1", "2", "3")
    assert calls(config)[4:] == ["fit 3", "validate 3"]
    sweep_seeds(config, "--seeds", "1", "2", "3", "--again", "2")
    assert calls(config)[6:] == ["fit 2", "validate 2"]
    assert saved(config)["seed_results"][1]["fit"].endswith("version_1")


@pytest.mark.parametrize(("broken", "done_again"), [("fit 2", ["fit 2", "validate 2"]), ("validate 2", ["validate 2"])])
def test_a_failed_seed_is_reported_skipped_and_retried(config: Path, broken: str, done_again: list[str]) -> None:
    config.with_name("broken").write_text(broken)
    with pytest.raises(
        UserError, match=r"1 of 3 seeds failed \(seed 2: .* exited with code 1: error: the disk is full"
    ):
        sweep_seeds(config, "--seeds", "1", "2", "3")
    assert [r["seed"] for r in saved(config)["seed_results"]] == [1, 3]
    assert "the disk is full" in saved(config)["failures"]["2"]
    config.with_name("broken").unlink()
    before = len(calls(config))
    sweep_seeds(config, "--seeds", "1", "2", "3")
    assert calls(config)[before:] == done_again
    assert [r["seed"] for r in saved(config)["seed_results"]] == [1, 2, 3]


def test_all_seeds_failing_is_an_error_without_a_table(config: Path) -> None:
    config.with_name("broken").write_text("fit 1")
    with pytest.raises(UserError, match="1 of 1 seeds failed"):
        sweep_seeds(config, "--seeds", "1")
    assert not (config.parent / "sweep" / "sweep.json").exists()


def test_seeds_of_another_configuration_are_not_mixed_in(config: Path) -> None:
    sweep_seeds(config, "--seeds", "1")
    with pytest.raises(UserError, match="with another configuration"):
        sweep_seeds(config, "--seeds", "1", "--", "--clock.max_seconds=3")
    config.write_text("seed_everything: 2\n")
    with pytest.raises(UserError, match="with another configuration"):
        sweep_seeds(config, "--seeds", "1")
    sweep_seeds(config, "--seeds", "1", "--again", "1")


def test_a_different_score_in_a_fresh_process_is_a_failure(config: Path) -> None:
    with pytest.raises(UserError, match="in a fresh process"):
        sweep_seeds(config, "--seeds", "1", "--", "--drift=1")


def test_each_device_gets_a_seed_at_a_time(config: Path) -> None:
    sweep_seeds(config, "--seeds", "1", "2", "3", "4", "--devices", "0,1", "2,3")
    lines = config.with_name("calls").read_text().splitlines()
    assert sorted(line.rsplit(" ", 2)[0] for line in lines) == sorted(
        f"{command} {seed}" for seed in (1, 2, 3, 4) for command in ("fit", "validate")
    )
    assert {line.split(" ", 2)[2] for line in lines} == {"2 0,1", "2 2,3"}


def test_a_missing_configuration_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no configuration"):
        sweep.main([f"--config={tmp_path / 'none.yaml'}", "--seeds", "1"])


def test_baselines_are_numbers_or_a_sweep_or_a_submission(tmp_path: Path) -> None:
    assert baseline_losses([]) == []
    assert baseline_losses(["1.9", "2"]) == [1.9, 2.0]
    file = tmp_path / "b.json"
    file.write_text(json.dumps({"seed_results": [{"val_loss": 1.5}, {"val_loss": 1.6}], "val_loss": {"mean": 1.55}}))
    assert baseline_losses([str(file)]) == [1.5, 1.6]
    file.write_text(json.dumps({"seed_results": {"1337": {"val_loss": 1.5}}, "val_loss": 1.5}))
    assert baseline_losses([str(file)]) == [1.5]
    file.write_text(json.dumps({"val_loss": 1.9}))
    assert baseline_losses([str(file)]) == [1.9]
    for content in ({"val_bpb": 1.1}, {"seed_results": [{"val_bpb": 1.1}]}):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match="does not give a val_loss"):
            baseline_losses([str(file)])
    with pytest.raises(UserError, match="neither numbers nor one file"):
        baseline_losses(["1.9", "x"])
    with pytest.raises(UserError, match="cannot be read"):
        baseline_losses([str(tmp_path / "none.json")])


def test_a_single_seed_is_reported_without_spread() -> None:
    result = dict.fromkeys(("seed", "bytes_total", "wallclock_seconds", "eval_time_seconds", "val_loss", "val_bpb"), 1)
    content, lines = sweep.report([result], [1.1, 1.2])
    assert content["val_loss"] == describe([1.0]).__dict__
    assert "cannot be decided" in lines
