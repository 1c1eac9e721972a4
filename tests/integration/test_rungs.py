"""Each record of the ladder from text to score at a tiny scale, and its file scored again in a fresh process."""

from pathlib import Path

import pytest

from components.artifact import read_artifact
from tests.support import ROOT, SAMPLE, needs_sample, run, summary_of

CONFIGS = ROOT / "configs"
# The sample has two vocabularies; a rung takes its own from the tokenizer that it is given.
VOCABULARIES = {
    "record_11l_ema": 1024,
    "record_sp4096": 8192,
    "record_sp8192_loop": 8192,
    "record_sp8192_ttt": 8192,
    "record_sp8192_gates": 8192,
}


def arguments(command: str, rung: str, runs: Path) -> list[str]:
    vocab = VOCABULARIES[rung]
    return [
        command,
        *(f"--config={CONFIGS / name}.yaml" for name in (rung, "tiny", f"tiny_{rung}")),
        f"--data.path={SAMPLE / 'datasets' / f'fineweb10B_sp{vocab}'}",
        f"--data.tokenizer_path={SAMPLE / 'tokenizers' / f'fineweb_{vocab}_bpe.model'}",
        f"--trainer.default_root_dir={runs}",
        "--trainer.enable_progress_bar=false",
    ]


@pytest.mark.slow
@needs_sample
@pytest.mark.parametrize("rung", VOCABULARIES)
def test_a_rung_trains_exports_and_scores_the_same_in_a_fresh_process(rung: str, tmp_path: Path) -> None:
    calibrated = [] if rung == "record_11l_ema" else ["--export.quantizer.calibration_batches=2"]
    fit = arguments("fit", rung, tmp_path / "runs")
    result = run("cli.py", *fit, "--trainer.max_steps=10", *calibrated, timeout=300)
    assert result.returncode == 0, result.stderr
    fitted = summary_of(tmp_path / "runs")
    settings = read_artifact(fitted["artifact"]).settings
    assert settings is not None
    assert settings["vocab_size"] == VOCABULARIES[rung]
    if settings["num_loops"]:
        assert fitted["loops_start_step"] in (4, 5)  # 35% or half of 10 steps
    if "test_time_training" in fitted:
        trained = fitted["test_time_training"]["trained"]
        assert [scored for _, _, scored in trained] == [512, 1024, 1536]
        assert all(end <= scored for _, end, scored in trained)
    validate = arguments("validate", rung, tmp_path / "validate")
    result = run("cli.py", *validate, f"--artifact={fitted['artifact']}", timeout=300)
    assert result.returncode == 0, result.stderr
    assert summary_of(tmp_path / "validate")["val_bpb"] == pytest.approx(fitted["val_bpb"], abs=1e-6)
