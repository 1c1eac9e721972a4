import ast
import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from components.errors import UserError
from records import script
from records.script import Script, build_script, compressed_bytes, needed_files
from records.submission import REQUIREMENTS
from tests.records.conftest import Made
from tests.support import ROOT, run

RUNGS = ("record_11l_ema", "record_sp4096", "record_sp8192_loop", "record_sp8192_ttt", "record_sp8192_gates")
RECORD_CONFIG = (ROOT / "configs" / "record_10l.yaml").read_text()


@functools.cache
def record_script(bytes_model: int) -> Script:
    """The record's script beside an artifact of this size; made once, since every module is tried in clear text."""
    return build_script(RECORD_CONFIG, bytes_model)


def unclear_script(config: str) -> tuple[dict[str, str], Script]:
    """A script with every module compressed, and its modules."""
    settings, _, sources = script._sources(config)
    return sources, script._assemble(settings, sources, {})


def run_alone(folder: Path, *command: str) -> str:
    """Run Python in a folder, with nothing of the project on its path."""
    result = run(*command, timeout=180, folder=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_record_script_is_within_its_size_and_shows_the_network() -> None:
    packed = record_script(15_800_000)
    # A tenth of it lets runs survive; what only shows them to people is left out.
    assert compressed_bytes(RECORD_CONFIG) <= 62_000
    assert packed.num_bytes <= 180_000
    assert packed.readable[0] == "lightning_modules/gpt.py"
    for file in ("components/gpt.py", "components/quantization.py", "components/storage.py"):
        assert (ROOT / file).read_text() in packed.text
    assert "num_layers: 10" in packed.text
    ast.parse(packed.text)


def test_it_holds_what_a_record_takes_and_nothing_else() -> None:
    files = needed_files()
    assert {"command_line/bare.py", "callbacks/export.py", "components/rans.py", "datamodules/__init__.py"} <= set(
        files
    )
    for kept in ("checkpoint", "signals", "ranks", "run_folder", "run_log", "summary"):  # it survives, and says so
        assert f"callbacks/{kept}.py" in files
    for other in ("download", "prepare", "corpus", "verify", "documents"):
        assert f"datamodules/{other}.py" not in files
    shown = ("history", "dashboard", "hyperparameters", "tensorboard_log", "sample", "storage_costs", "progress_bar")
    for other in shown:
        assert f"callbacks/{other}.py" not in files
    assert {file for file in files if file.startswith("command_line/")} == {
        "command_line/__init__.py",
        "command_line/bare.py",
        "command_line/run.py",
    }
    assert {"cli.py", "components/generation.py", "components/checkpoint_reading.py"}.isdisjoint(files)
    assert not [file for file in files if file.startswith("records/")]
    imported = {
        alias.split(".")[0]
        for file in files
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        for alias in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
        )
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    foreign = imported - set(sys.stdlib_module_names) - {file.split("/")[0].removesuffix(".py") for file in files}
    assert foreign - {"yaml", "triton"} <= {*REQUIREMENTS}  # triton comes with a CUDA build of torch
    assert "PyYAML" in REQUIREMENTS  # the package of yaml


def test_clear_text_makes_room_for_the_artifact() -> None:
    roomy, tight = (record_script(bytes_model).num_bytes for bytes_model in (15_800_000, 15_900_000))
    assert tight <= 100_000 < roomy


def test_an_artifact_that_leaves_no_room_for_the_script_is_an_error() -> None:
    with pytest.raises(UserError, match="an artifact of 15,980,000 bytes leaves 20,000"):
        build_script(RECORD_CONFIG, 15_980_000)


def test_the_script_holds_the_classes_that_the_configuration_names() -> None:
    named = {"averaging": {"class_path": "datamodules.corpus.Topic", "init_args": {}}}
    packed = build_script(yaml.safe_dump({**yaml.safe_load(RECORD_CONFIG), **named}))
    # Together with what they import.
    assert {"datamodules/corpus.py", "datamodules/prepare.py"} <= {*packed.readable, *packed.packed}
    assert "datamodules/corpus.py" not in record_script(15_800_000).text


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_s_script_holds_the_classes_of_its_techniques(rung: str) -> None:
    config = (ROOT / "configs" / f"{rung}.yaml").read_text()
    sources, packed = unclear_script(config)
    for name, file in (
        ("ExponentialMean", "components/averages.py"),
        ("GPTQ", "components/gptq.py"),
        ("ScoreFirstTraining", "components/test_time_training.py"),
    ):
        assert (file in sources and f"class {name}" in sources[file]) == (name in config), name
    compile(packed.text, "train_gpt.py", "exec")
    assert compressed_bytes(config) == packed.num_bytes <= 66_000


@pytest.mark.slow
def test_the_script_alone_runs_under_torchrun_and_counts_its_own_bytes(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.folder / "train_gpt.py", tmp_path)
    (tmp_path / "tensorboard.py").write_text("raise ImportError('it is not in requirements.txt')")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_gpt.py"]
    run_alone(tmp_path, *torchrun, "--trainer.max_steps=4", "--schedule.warmdown_steps=2")
    summary = json.loads((tmp_path / "runs" / "lightning_logs" / "version_0" / "summary.json").read_text())
    assert (summary["world_size"], summary["step_stop"]) == (2, 4)
    assert summary["bytes_code"] == (tmp_path / "train_gpt.py").stat().st_size
    assert summary["num_params"] == json.loads((made.folder / "submission.json").read_text())["num_params"]
    left = {path.name for path in (tmp_path / "runs" / "lightning_logs" / "version_0").iterdir()}
    assert {"checkpoints", "config.yaml", "model.golf", "model.safetensors", "summary.json", "train.log"} <= left
    assert not [name for name in left if name.startswith(("history", "report", "events"))]  # what people look at


def test_the_script_alone_lists_its_settings_and_unpacks(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.folder / "train_gpt.py", tmp_path)
    shown = " ".join(run_alone(tmp_path, "train_gpt.py", "fit", "--help").split())
    for setting in ("--model.num_layers", "--late_qat.start_fraction", "--data.train_batch_tokens"):
        assert setting in shown
    assert "Transformer blocks; the first half" in shown  # what is in clear text is explained
    run_alone(tmp_path, "train_gpt.py", "unpack", "sources")
    assert (tmp_path / "sources" / "components" / "gpt.py").read_text() == (ROOT / "components/gpt.py").read_text()
    assert {str(p.relative_to(tmp_path / "sources")) for p in (tmp_path / "sources").rglob("*.py")} == {*needed_files()}
