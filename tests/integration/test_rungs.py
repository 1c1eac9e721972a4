"""Each record of the ladder at a tiny scale: from text to a packed and audited score, and its script alone."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.artifact import read_artifact
from datamodules.shards import open_shard
from records import pack, sweep
from records.audit.checks import GROUPS, judge
from records.audit.verdicts import State, Word
from tests.records.audit.support import case_of
from tests.support import ROOT, SAMPLE, needs_sample, run, summary_of, write_shard

CONFIGS = ROOT / "configs"
# The sample has two vocabularies; a rung takes its own from the tokenizer that it is given.
VOCABULARIES = {
    "record_10l": 1024,
    "record_11l_ema": 1024,
    "record_sp4096": 8192,
    "record_sp8192_loop": 8192,
    "record_sp8192_ttt": 8192,
    "record_sp8192_gates": 8192,
}
TRAINING = ("record_sp8192_ttt", "record_sp8192_gates")
"""The rungs that train on the text that they score."""
ALL_TECHNIQUES = "record_sp8192_gates"
SEED = 42
VAL_IDS = 1200
NEEDS_THE_TRACK = {"training seconds", "scoring seconds", "recorded scoring seconds", "significance"}


@dataclasses.dataclass(frozen=True)
class Rung:
    name: str
    data: Path
    sweep: Path
    folder: Path

    @property
    def fitted(self) -> dict:
        return summary_of(self.sweep / f"seed{SEED}" / "fit")


@pytest.fixture(scope="module", params=VOCABULARIES)
def rung(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rung]:
    """A rung trained for a few steps, scored in a fresh process and packed, on a split small enough to score whole."""
    root, vocab = tmp_path_factory.mktemp(request.param), VOCABULARIES[request.param]
    data = root / "data"
    data.mkdir()
    shutil.copy(SAMPLE / "tokenizers" / f"fineweb_{vocab}_bpe.model", data / "tokenizer.model")
    for shard in (SAMPLE / "datasets" / f"fineweb10B_sp{vocab}").glob("*.bin"):
        write_shard(data / shard.name, open_shard(shard)[: VAL_IDS if "_val_" in shard.name else None])
    configs = [path for name in ("", "tiny_") if (path := CONFIGS / f"{name}{request.param}.yaml").is_file()]
    configs.insert(1, CONFIGS / "tiny.yaml")
    settings = {
        "data.path": data,
        "data.tokenizer_path": data / "tokenizer.model",
        "trainer.enable_progress_bar": "false",
        "trainer.max_steps": 6,
        "warmup.steps": 2,
        "scoring.max_tokens": 0,
        **({"export.quantizer.calibration_batches": 2} if "sp" in request.param else {}),
    }
    extra = [f"--{name}={value}" for name, value in settings.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        named = [f"--config={path}" for path in configs]
        sweep.main([*named, f"--seeds={SEED}", f"--out={root / 'sweep'}", "--", *extra])
        pack.main([str(root / "sweep"), f"--out={root / 'folder'}", "--author=Ada", "--github-id=ada"])
        yield Rung(request.param, data, root / "sweep", root / "folder")


@pytest.mark.slow
@needs_sample
def test_a_rung_trains_exports_and_scores_the_same_in_a_fresh_process(rung: Rung) -> None:
    fitted, settings = rung.fitted, read_artifact(rung.folder / f"model_seed{SEED}.golf").settings
    assert settings is not None
    assert settings["vocab_size"] == VOCABULARIES[rung.name]
    if settings["num_loops"]:
        assert fitted["loops_start_step"] == 3  # from 35% or half of 6 steps
    assert ("test_time_training" in fitted) == (rung.name in TRAINING)
    if rung.name in TRAINING:
        assert fitted["test_time_training"]["trained"] == [[0, 512, 512], [512, 1024, 1024]]
    scored = summary_of(rung.sweep / f"seed{SEED}" / "validate")
    assert scored["val_bpb"] == pytest.approx(fitted["val_bpb"], abs=1e-6)


@pytest.mark.slow
@needs_sample
def test_a_packed_rung_passes_the_audit(rung: Rung) -> None:
    case = case_of(rung.folder, rung.data)
    [run_of_seed] = case.submission.runs
    verdicts = {
        check.name: judge(check, case, run_of_seed)
        for group in GROUPS
        for check in group
        if check.word != Word.SCRIPT or rung.name == ALL_TECHNIQUES  # each of these lines starts the script
    }
    left = {name for name, verdict in verdicts.items() if verdict.state != State.PASS and not name.startswith("look: ")}
    assert left == NEEDS_THE_TRACK, {name: verdicts[name].detail for name in left}
    trained = "trained 2 times, on 1,024" if rung.name in TRAINING else "trains on nothing"
    assert trained in verdicts["score before update"].detail
    code = (rung.folder / "train_gpt.py").stat().st_size
    assert json.loads((rung.folder / "submission.json").read_text())["bytes_code"] == code


@pytest.mark.slow
@needs_sample
def test_a_rung_s_script_alone_gives_the_claimed_score(rung: Rung, tmp_path: Path) -> None:
    for name in ("train_gpt.py", f"model_seed{SEED}.golf"):
        shutil.copy(rung.folder / name, tmp_path)
    result = run("train_gpt.py", "validate", f"--artifact=model_seed{SEED}.golf", timeout=300, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    scored = summary_of(tmp_path / "runs")
    claimed = json.loads((rung.folder / "submission.json").read_text())
    assert scored["val_bpb"] == pytest.approx(claimed["val_bpb"], abs=1e-6)
    assert scored.get("test_time_training") == rung.fitted.get("test_time_training")
