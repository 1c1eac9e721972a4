"""Classes of the project by their short names."""

import shutil
from pathlib import Path

import yaml

from tests.support import ROOT, run

NEW_TECHNIQUE = '''
from components.averages import SnapshotMean
from components.quantization import Nearest


class Brand(SnapshotMean):
    """A new average.

    Args:
        strength: How much.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength


class Newest(Nearest):
    """A new quantizer."""
'''


def test_a_class_in_a_new_file_goes_by_its_short_name(tmp_path: Path) -> None:
    # A copy of the program with one more file, which nothing imports.
    for package in ("callbacks", "command_line", "components", "datamodules", "lightning_modules", "records"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", tmp_path)
    (tmp_path / "components" / "brand.py").write_text(NEW_TECHNIQUE)
    (tmp_path / "some.yaml").write_text("export:\n  quantizer: Newest\nscorer: SlidingWindows\n")
    arguments = [f"--config={tmp_path / 'some.yaml'}", "--averaging=Brand", "--averaging.strength=2.5"]
    result = run(str(tmp_path / "cli.py"), "fit", *arguments, "--print_config", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["averaging"] == {"class_path": "components.brand.Brand", "init_args": {"strength": 2.5}}
    assert config["export"]["quantizer"]["class_path"] == "components.brand.Newest"
    assert config["scorer"] == {"class_path": "components.scorer.SlidingWindows"}


def test_help_lists_the_classes_to_choose_from() -> None:
    shown = run("cli.py", "fit", "--help").stdout
    for name in ("averages.ExponentialMean", "gptq.GPTQ", "test_time_training.ScoreFirstTraining"):
        assert f"components.{name}" in shown
