"""Each line of the audit, failing on a copy of a good submission with one thing wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.artifact import read_artifact, write_artifact
from components.errors import UserError
from components.gpt import GPTConfig
from components.public_artifact import write_public_artifact
from datamodules.shards import open_shard
from records import audit
from records.audit import Audit, State, Verdict
from tests.records.conftest import Made
from tests.records.test_train_log import PUBLIC
from tests.support import GOLDEN, SAMPLE, needs_golden, needs_sample, recipe_stored, tiny_network, write_shard

PER_SEED = (
    "total bytes",
    "training seconds",
    "scoring seconds",
    "claims = log",
    "trained on train",
    "each target once",
    "whole split",
    "artifact loads",
    "score recomputed",
)
LINES = (
    *("files", "submission.json", "script compiles", "script imports", "network", "initial loss", "code bytes"),
    *(f"{line}, seed {seed}" for seed in (42, 1337) for line in PER_SEED),
    *("seeds", "means", "significance"),
)

_fresh_results: dict[tuple, str] = {}


@pytest.fixture(autouse=True)
def _each_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fresh process said of the same files is not asked again."""
    run_fresh = Audit._run_fresh

    def remembered(
        self: Audit, scratch: Path, job: str, script: Path, artifact: Path | None, words: list[str], *rest: float
    ) -> str:
        files = [path.read_bytes() for path in (script, artifact) if path is not None]
        key = (job, *files)
        summary = scratch / "scored" / "lightning_logs" / "version_0" / "summary.json"
        if key not in _fresh_results:
            output = run_fresh(self, scratch, job, script, artifact, words, *rest)
            _fresh_results[key] = summary.read_text() if job == "run" else output
        if job == "run":
            summary.parent.mkdir(parents=True, exist_ok=True)
            summary.write_text(_fresh_results[key])
        return _fresh_results[key]

    monkeypatch.setattr(Audit, "_run_fresh", remembered)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def verdicts_of(folder: Path, data: Path | None, **settings: list[float]) -> dict[str, Verdict]:
    return {verdict.check: verdict for verdict in Audit(folder, data, **settings).run()}


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "submission"))


def test_a_good_submission_passes_every_line(made: Made) -> None:
    verdicts = verdicts_of(made.folder, made.data)
    assert tuple(verdicts) == LINES
    assert {name: v for name, v in verdicts.items() if v.state != State.PASS} == {}


def edit_json(name: str, **fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for field, value in fields.items():
            if value is None:
                del content[field]
            else:
                content[field] = value
        (folder / name).write_text(json.dumps(content))

    return edit


def edit_text(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


def edit_line(start: str, line: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "train_seed42.log"
        lines = [line if said.startswith(start) else said for said in path.read_text().splitlines()]
        assert line in lines
        path.write_text("\n".join(lines) + "\n")

    return edit


def edit_result(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "submission.json").read_text())
        content["seed_results"]["42"].update(fields)
        (folder / "submission.json").write_text(json.dumps(content))

    return edit


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def better_score_everywhere(folder: Path) -> None:
    """Claims, log and record agree on a score that the artifact does not reach."""
    record = json.loads((folder / "run_seed42.json").read_text())
    better = record["val_bpb"] - 0.01
    edit_json("run_seed42.json", val_bpb=better)(folder)
    edit_result(val_bpb=better)(folder)
    edit_line("artifact", f"artifact val_loss {record['val_loss']:.8f} val_bpb {better:.8f} scored in 1.0 s")(folder)
    edit_json("run_seed42.json", eval_time_seconds=1.0)(folder)
    edit_result(eval_time_seconds=1.0)(folder)
    submission = json.loads((folder / "submission.json").read_text())
    edit_json("submission.json", val_bpb=submission["val_bpb"] - 0.005)(folder)


def damage(folder: Path) -> None:
    path = folder / "model_seed42.golf"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def grow(folder: Path) -> None:
    """An artifact over the cap, and claims that own up to it."""
    path = folder / "model_seed42.golf"
    path.write_bytes(bytes(15_990_000))
    code = (folder / "train_gpt.py").stat().st_size
    edit_result(bytes_model=15_990_000, bytes_total=15_990_000 + code)(folder)


def describe_another_network(folder: Path) -> None:
    path = folder / "model_seed42.golf"
    artifact = read_artifact(path)
    assert artifact.settings is not None
    write_artifact(path, {**artifact.settings, "logit_softcap": 20.0}, artifact.tensors)


def forget_seed(folder: Path) -> None:
    content = json.loads((folder / "submission.json").read_text())
    del content["seed_results"]["42"]["val_bpb"]
    (folder / "submission.json").write_text(json.dumps(content))


def forget_figures(folder: Path) -> None:
    content = json.loads((folder / "submission.json").read_text())
    content["seed_results"]["42"] = {}
    (folder / "submission.json").write_text(json.dumps(content))


def forget_sizes(folder: Path) -> None:
    (folder / "model_seed42.golf").unlink()
    (folder / "train_seed42.log").write_text("nothing\n")


@pytest.mark.parametrize(
    ("line", "spoil", "detail"),
    [
        ("files", remove("README.md"), "missing: README.md"),
        ("files", remove("train_gpt.py"), "missing: train_gpt.py"),
        ("submission.json", edit_json("submission.json", github_id=None), "github_id is missing"),
        ("submission.json", edit_json("submission.json", bytes_total="12"), "bytes_total is '12'"),
        ("submission.json", edit_json("submission.json", val_bpb=float("nan")), "val_bpb is nan"),
        ("submission.json", lambda folder: (folder / "submission.json").write_text("{"), "cannot be read as JSON"),
        ("submission.json", lambda folder: (folder / "submission.json").write_text("[]"), "holds no JSON object"),
        ("script compiles", edit_text("train_gpt.py", "import base64", "import base64 !"), "invalid syntax"),
        ("script imports", edit_text("train_gpt.py", "import base64", "import base46"), "No module named 'base46'"),
        (
            "script imports",
            edit_text(
                "train_gpt.py", "CONFIG = ", "__import__('socket').create_connection(('192.0.2.1', 80))\nCONFIG = "
            ),
            "the audit refuses the network",
        ),
        ("network", edit_line("1544361", "1544360 parameters"), "seed 42 says 1,544,360"),
        ("network", edit_json("submission.json", num_params=7), "submission.json says 7"),
        ("code bytes", lambda folder: (folder / "helper.py").write_text("x = 1\n"), "submission.json says"),
        ("total bytes, seed 42", grow, "of 16,000,000 bytes"),
        ("total bytes, seed 42", edit_result(bytes_total=1), "bytes_total is claimed to be 1"),
        (
            "training seconds, seed 42",
            edit_line("stopped", "stopped at step 12, elapsed 600.100 s"),
            "600.100 s of 600",
        ),
        (
            "scoring seconds, seed 42",
            edit_line("artifact", "artifact val_loss 6.5 val_bpb 3.1 scored in 600.5 s"),
            "600.500 s of 600 s",
        ),
        ("claims = log, seed 42", edit_result(val_loss=6.0), "val_loss is claimed to be 6.0, the log says"),
        ("claims = log, seed 42", edit_json("run_seed42.json", step_stop=11), "the run's record says 11"),
        (
            "trained on train, seed 42",
            edit_json("run_seed42.json", train_shards=["fineweb_train_000000.bin", "fineweb_val_000000.bin"]),
            "trained on fineweb_val_000000.bin",
        ),
        ("trained on train, seed 42", edit_json("run_seed42.json", train_positions=[5, 5]), "positions"),
        ("each target once, seed 42", edit_json("run_seed42.json", tokens_scored=3000), "3,000 scores in"),
        ("each target once, seed 42", edit_json("run_seed42.json", windows=200), "in 200 windows, where"),
        ("each target once, seed 42", edit_json("run_seed42.json", val_shards=["fineweb_train_1.bin"]), "scored on"),
        ("whole split, seed 42", edit_json("run_seed42.json", val_ids=1400), "1,400 ids were scored"),
        ("artifact loads, seed 42", damage, "is damaged"),
        ("artifact loads, seed 42", describe_another_network, "logit_softcap is 20.0 in model_seed42.golf and 30.0"),
        ("score recomputed, seed 42", better_score_everywhere, "recomputed in 32-true, claimed"),
        ("seeds", edit_json("submission.json", seeds=[42, 42]), "seeds [42, 42]"),
        ("seeds", remove("train_seed42.log"), "logs of [1337]"),
        ("means", forget_seed, "val_bpb is not given for every seed"),
        ("means", edit_json("submission.json", val_bpb=1.1), "val_bpb is claimed to be 1.1, the seeds' mean is"),
        ("significance", edit_json("submission.json", baseline_val_losses=[6.4, 6.41, 6.42], p_value=None), "worse"),
        ("significance", edit_json("submission.json", p_value=1e-9), "p is claimed to be 1e-09, recomputed"),
    ],
)
def test_each_line_fails_where_something_is_wrong(
    line: str, spoil: Callable[[Path], None], detail: str, made: Made, folder: Path
) -> None:
    spoil(folder)
    (folder / "model_seed1337.golf").unlink()  # one artifact is enough to load
    # Nothing but the recomputed score needs the data, and only changed files are loaded or scored anew.
    data = made.data if line.startswith(("score", "whole")) else None
    verdict = verdicts_of(folder, data)[line]
    assert verdict.state == State.FAIL, verdict
    assert detail in verdict.detail


@pytest.mark.parametrize(
    ("line", "spoil", "detail"),
    [
        ("score recomputed, seed 42", lambda folder: None, "no data was given"),
        ("whole split, seed 42", edit_json("run_seed42.json", scoring_max_tokens=1400), "only the first 1,500"),
        ("trained on train, seed 42", remove("run_seed42.json"), "no record of what the run read"),
        ("artifact loads, seed 42", remove("model_seed42.golf"), "holds no artifact"),
        ("total bytes, seed 42", remove("model_seed42.golf"), "no artifact to count; 1,"),
        ("scoring seconds, seed 42", remove("train_seed42.log"), "no one log"),
        ("scoring seconds, seed 42", edit_line("artifact", "artifact"), "the log does not say"),
        ("total bytes, seed 42", forget_sizes, "no artifact and no log that gives its size"),
        ("claims = log, seed 42", forget_figures, "no figure in common"),
        ("significance", edit_json("submission.json", baseline_val_losses=[7.5], p_value=None), "one seed"),
        ("seeds", edit_json("submission.json", seeds=None), "lists no seeds"),
        ("means", edit_json("submission.json", seed_results=None), "no results of single seeds"),
    ],
)
def test_what_could_not_be_checked_is_said(line: str, spoil: Callable[[Path], None], detail: str, folder: Path) -> None:
    spoil(folder)
    verdict = verdicts_of(folder, None)[line]
    assert verdict.state == State.UNKNOWN, verdict
    assert detail in verdict.detail


@pytest.mark.parametrize(
    ("spoil", "detail"),
    [
        (edit_json("run_seed42.json", tokens_scored=5), "targets of this data, where the run scored 5"),
        (forget_figures, "and no claim to compare"),
    ],
)
def test_a_score_with_nothing_to_compare_it_to_is_said(
    spoil: Callable[[Path], None], detail: str, made: Made, folder: Path
) -> None:
    spoil(folder)
    verdict = verdicts_of(folder, made.data)["score recomputed, seed 42"]
    assert verdict.state == State.UNKNOWN
    assert detail in verdict.detail


def test_a_process_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PROGRESS_SECONDS", 0.1)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        with pytest.raises(audit.Failed, match="took more than 0 s"):
            audit._communicate(process, "import", timeout=0)
        assert process.wait() != 0


@pytest.mark.parametrize("field", ["train_positions", "val_ids", "windows"])
def test_a_malformed_record_is_a_failure_and_no_crash(field: str, folder: Path) -> None:
    edit_json("run_seed42.json", **{field: "x"})(folder)
    assert any(v.state == State.FAIL for name, v in verdicts_of(folder, None).items() if name.endswith("seed 42"))


def test_a_baseline_on_the_command_line_comes_first(made: Made) -> None:
    assert verdicts_of(made.folder, None, baseline=[6.4, 6.41, 6.42])["significance"].state == State.FAIL


FOREIGN = """
import torch
from torch import nn


class Hyperparameters:
    vocab_size = 1024
    num_layers = 3
    model_dim = 64
    data_path = "data"


class GPT(nn.Module):
    def __init__(self, vocab_size, num_layers, model_dim):
        super().__init__()
        self.table = nn.Embedding(vocab_size, model_dim)
        nn.init.normal_(self.table.weight, std=0.005)

    def forward(self, input_ids, target_ids):
        z = self.table(input_ids) @ self.table.weight.T
        return nn.functional.cross_entropy(z.flatten(0, 1), target_ids.flatten())


if __name__ == "__main__":
    raise SystemExit("needs a GPU")
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder such as the public ones: one run, few fields, a script and an artifact in their own ways."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "README.md").write_text("# A record\n")
    (folder / "train_gpt_v1.py").write_text(FOREIGN)
    (folder / "train.log").write_text(PUBLIC.replace("24730705", "65536"))
    claims: dict[str, object] = {"author": "A", "github_id": "a", "name": "N", "val_loss": 1.9634, "val_bpb": 1.1628}
    claims["bytes_total"] = 15425120 + len(FOREIGN)  # as the log and the file say
    (folder / "submission.json").write_text(json.dumps(claims))
    return folder


def test_a_foreign_folder_is_audited_as_far_as_it_shows(foreign: Path, made: Made) -> None:
    verdicts = verdicts_of(foreign, made.data)
    failed = {name: v.detail for name, v in verdicts.items() if v.state == State.FAIL}
    assert failed == {"training seconds, seed 1337": "601.991 s of 600 s"}
    passed = {name for name, v in verdicts.items() if v.state == State.PASS}
    assert passed == {
        *("files", "submission.json", "script compiles", "script imports", "network", "initial loss", "code bytes"),
        *("scoring seconds, seed 1337", "claims = log, seed 1337"),
    }
    assert "num_layers 3, model_dim 64" in verdicts["network"].detail
    assert "no artifact to count" in verdicts["total bytes, seed 1337"].detail


def test_a_foreign_artifact_is_read_where_it_is_of_the_public_format(foreign: Path, made: Made) -> None:
    write_public_artifact(foreign / "final.int5int6.ptz", recipe_stored(tiny_network().state_dict()))
    verdicts = verdicts_of(foreign, made.data)
    assert verdicts["artifact loads, seed 1337"].state == State.PASS
    assert verdicts["score recomputed, seed 1337"].state == State.UNKNOWN
    assert "does not say how it scores" in verdicts["score recomputed, seed 1337"].detail
    assert verdicts["total bytes, seed 1337"].state == State.FAIL  # the claim is of another size
    (foreign / "final.int5int6.ptz").write_bytes(b"of no format that is known")
    verdict = verdicts_of(foreign, None)["artifact loads, seed 1337"]
    assert verdict.state == State.UNKNOWN
    assert "not a format that this audit reads" in verdict.detail


def test_a_foreign_network_that_is_not_this_projects_is_said(
    foreign: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_text("train_gpt_v1.py", 'data_path = "data"', "train_seq_len = eval_stride = 64")(foreign)
    write_public_artifact(foreign / "final.int5int6.ptz", recipe_stored(tiny_network().state_dict()))
    run_fresh = Audit._run_fresh

    def refuse_to_score(self: Audit, scratch: Path, job: str, *rest: Any) -> str:
        if job == "run":
            raise audit.Failed("the network of the configuration is not the one in it")
        return run_fresh(self, scratch, job, *rest)

    monkeypatch.setattr(Audit, "_run_fresh", refuse_to_score)
    verdict = verdicts_of(foreign, made.data)["score recomputed, seed 1337"]
    assert verdict.state == State.UNKNOWN
    assert "this project's network does not score it (the network of" in verdict.detail


@needs_golden
@needs_sample
@pytest.mark.parametrize(("off_by", "state"), [(0, State.PASS), (0.01, State.FAIL)])
def test_a_public_artifact_is_scored_again_as_the_public_script_scores_it(
    off_by: float, state: State, foreign: Path, tmp_path: Path
) -> None:
    data = tmp_path / "sample"
    data.mkdir()
    [shard] = (SAMPLE / "datasets" / "fineweb10B_sp1024").glob("fineweb_val_*.bin")
    write_shard(data / shard.name, open_shard(shard)[:4097])
    shutil.copy(GOLDEN / "artifact.int5int6.ptz", foreign)
    settings = json.loads((GOLDEN / "config.json").read_text()) | {"eval_stride": 64}
    names = ", ".join(name for name in settings if name in GPTConfig.__dataclass_fields__)
    text = FOREIGN.replace("vocab_size, num_layers, model_dim)", f"{names})").split("class Hyperparameters")[0]
    values = "".join(f"    {name} = {value!r}\n" for name, value in settings.items())
    classes = FOREIGN.replace("vocab_size, num_layers, model_dim)", f"{names})").split('data_path = "data"\n')[1]
    (foreign / "train_gpt_v1.py").write_text(f"{text}class Hyperparameters:\n{values}{classes}")
    [golden] = [case for case in json.loads((GOLDEN / "eval.json").read_text())["roundtrip"] if case["tokens"] == 4097]
    edit_json("submission.json", val_bpb=golden["val_bpb"] + off_by)(foreign)
    audit = Audit(foreign, data, SAMPLE / "tokenizers" / "fineweb_1024_bpe.model")
    verdict = {v.check: v for v in audit.run()}["score recomputed, seed 1337"]
    assert verdict.state == state, verdict
    assert f"{golden['val_bpb']:.4f}" in verdict.detail


def test_a_network_that_knows_or_errs_before_any_training_fails(foreign: Path) -> None:
    edit_text("train_gpt_v1.py", "std=0.005", "std=1.0")(foreign)
    verdict = verdicts_of(foreign, None)["initial loss"]
    assert verdict.state == State.FAIL
    assert "nats before any training, guessing evenly is 6.9315" in verdict.detail


def test_a_foreign_script_without_a_known_network_is_said(foreign: Path) -> None:
    (foreign / "train_gpt_v1.py").write_text("x = 1\n")
    verdicts = verdicts_of(foreign, None)
    assert verdicts["script imports"].state == State.PASS
    assert verdicts["network"].state == verdicts["initial loss"].state == State.UNKNOWN
    assert "no classes GPT and Hyperparameters" in verdicts["network"].detail


def test_the_command_exits_by_the_verdicts(made: Made, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit.main([str(folder)])
    assert " 0 FAIL, " in capsys.readouterr().out
    (folder / "README.md").unlink()
    with pytest.raises(SystemExit) as exited:
        audit.main([str(folder)])
    assert exited.value.code == 1
    assert " 1 FAIL, " in capsys.readouterr().out
    with pytest.raises(UserError, match="There is no folder"):
        audit.main([str(folder / "none")])
    with pytest.raises(UserError, match="There is no tokenizer"):
        audit.main([str(folder), f"--data={folder}"])
