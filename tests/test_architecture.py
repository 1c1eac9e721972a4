"""The arrows of the house: cli -> {lightning_modules, datamodules, callbacks} -> components."""

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

LAYER = ("callbacks", "datamodules", "lightning_modules")
# What each package may import of the project; of other libraries, components may import no Lightning.
ALLOWED = {"components": {"components"}, **{package: {package, "components"} for package in LAYER}}
PROJECT = {*ALLOWED, "cli", "benchmarks", "tests"}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}

FILES = [file for package in ALLOWED for file in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Top-level names of all that a module of ``package`` imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1
            assert up < len(package), "an import from above the project"
            names.add(package[0] if node.level else str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            names.add(ast.literal_eval(node.args[0]).split(".")[0])
    return names


def test_every_package_has_files() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(ALLOWED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_arrows(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    names = imported(file.read_text(), file.relative_to(ROOT).parts[:-1])
    assert names & PROJECT <= ALLOWED[package]
    if package == "components":
        assert not names & LIGHTNING


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import callbacks.clock", "callbacks"),
        ("from callbacks import clock", "callbacks"),
        ("def f():\n    from callbacks.clock import Clock", "callbacks"),
        ("import importlib\nimportlib.import_module('callbacks.clock')", "callbacks"),
        ("from . import clock", "components"),
        ("if TYPE_CHECKING:\n    import lightning.pytorch as pl", "lightning"),
    ],
)
def test_no_form_of_import_escapes(source: str, name: str) -> None:
    assert name in imported(source, ("components",))
