import ast
import functools
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from components.errors import UserError
from records import script
from records.script import Script, build_script, compressed_bytes, needed_files, shake, strip
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
    # A quarter of it lets runs survive and people see them.
    assert compressed_bytes(RECORD_CONFIG) <= 90_000
    assert packed.num_bytes <= 180_000
    assert packed.readable[0] == "lightning_modules/gpt.py"
    for file in ("components/gpt.py", "components/quantization.py", "components/storage.py"):
        assert (ROOT / file).read_text() in packed.text
    assert "num_layers: 10" in packed.text
    ast.parse(packed.text)


def test_it_holds_what_fit_and_validate_need_and_nothing_else() -> None:
    files = needed_files()
    assert {"cli.py", "callbacks/export.py", "components/rans.py", "datamodules/__init__.py"} <= set(files)
    for other in ("download", "prepare", "corpus", "verify", "documents"):
        assert f"datamodules/{other}.py" not in files
    assert not [file for file in files if file.startswith("records/")]  # which cli.py imports only to count code
    imported = {
        alias.split(".")[0]
        for file in files
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        for alias in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in getattr(node, "names", [])]
        )
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    imported -= {"records"}  # cli.py counts code with it; a packed script counts itself
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
    assert compressed_bytes(config) == packed.num_bytes <= 100_000


SOURCE = '''"""What the module is."""

import os

LIMIT = 3
"""What the limit is."""


class Settings:  # a comment
    """Settings.

    Args:
        size: The size, in bytes. # not a comment
    """

    def __init__(self, size: int) -> None:
        """Keep it."""
        self.text = "# not a comment either"

    def nothing(self) -> None:
        """Only say so."""


class Plain:
    """No arguments."""

    text = """a

    b"""


if __name__ == "__main__":
    Settings(1)
'''


def test_stripping_keeps_the_code_and_what_help_shows() -> None:
    stripped = strip(SOURCE)
    kept = ast.parse(stripped)
    assert [type(node).__name__ for node in kept.body] == ["Import", "Assign", "ClassDef", "ClassDef"]
    assert "size: The size, in bytes. # not a comment" in stripped
    assert "# not a comment either" in stripped
    assert '"""a\n\n    b"""' in stripped
    for gone in ("  # a comment", "What the module is", "What the limit is", "Keep it", "Only say so", "No arguments"):
        assert gone not in stripped
    assert not re.search(r"\n\s*\n", stripped.replace("a\n\n    b", "").replace("Settings.\n\n    Args", ""))


def test_stripping_does_not_change_any_module() -> None:
    for file in needed_files():
        whole, stripped = (
            ast.dump(_without_docstrings(ast.parse(source)))
            for source in ((ROOT / file).read_text(), strip((ROOT / file).read_text()))
        )
        assert stripped == whole, file


def _without_docstrings(tree: ast.Module) -> ast.Module:
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [n for n in node.body if not script._is_bare_string(n) and not isinstance(n, ast.Pass)]  # type: ignore[attr-defined]
    return tree


def test_unused_definitions_are_removed_until_none_is_left() -> None:
    sources = {
        "cli.py": "import a\ndef main():\n    a.used()\n",
        "a.py": "def used():\n    return used\n@decorated\ndef unused():\n    return helper()\ndef helper(): ...\n",
    }
    assert shake(sources, "") == {**sources, "a.py": "def used():\n    return used\n"}
    assert "def unused" in shake(sources, "class_path: a.unused")["a.py"]


@pytest.mark.slow
def test_the_script_alone_runs_under_torchrun_and_counts_its_own_bytes(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.folder / "train_gpt.py", tmp_path)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_gpt.py"]
    run_alone(tmp_path, *torchrun, "--trainer.max_steps=4", "--schedule.warmdown_steps=2")
    summary = json.loads((tmp_path / "runs" / "lightning_logs" / "version_0" / "summary.json").read_text())
    assert (summary["world_size"], summary["step_stop"]) == (2, 4)
    assert summary["bytes_code"] == (tmp_path / "train_gpt.py").stat().st_size
    assert summary["num_params"] == json.loads((made.folder / "submission.json").read_text())["num_params"]
    left = {path.name for path in (tmp_path / "runs" / "lightning_logs" / "version_0").iterdir()}
    assert "history.jsonl" in left  # from which the project's records.report draws the page that the script cannot
    assert "report.html" not in left


def test_the_script_alone_explains_its_settings_and_unpacks(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.folder / "train_gpt.py", tmp_path)
    shown = " ".join(run_alone(tmp_path, "train_gpt.py", "fit", "--help").split())
    for setting in ("--model.num_layers", "--late_qat.start_fraction", "--data.train_batch_tokens"):
        assert setting in shown
    for meaning in ("Transformer blocks; the first half", "Fraction of the budget", "Tokens per optimizer step"):
        assert meaning in shown
    run_alone(tmp_path, "train_gpt.py", "unpack", "sources")
    assert (tmp_path / "sources" / "components" / "gpt.py").read_text() == (ROOT / "components/gpt.py").read_text()
    assert {str(p.relative_to(tmp_path / "sources")) for p in (tmp_path / "sources").rglob("*.py")} == {*needed_files()}
