"""The import rules: cli -> {lightning_modules, datamodules, callbacks} -> components, without cycles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

LAYER = ("callbacks", "datamodules", "lightning_modules")
# What each package may import from the project; of other libraries, components may not import Lightning.
ALLOWED = {"components": {"components"}, **{package: {package, "components"} for package in LAYER}}
# Everything in the project, including directories added later.
PROJECT = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}

FILES = [file for package in ALLOWED for file in sorted((ROOT / package).rglob("*.py"))]


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Top-level names that a module of ``package`` imports, also inside functions."""
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


def test_every_part_of_the_project_is_seen() -> None:
    assert {*ALLOWED, "cli", "demo", "records", "benchmarks", "tests"} <= PROJECT


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


def modules_imported(file: Path) -> set[Path]:
    """The files of the project that a module imports when it is imported itself."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {path for name in names if (path := ROOT / f"{name.replace('.', '/')}.py").is_file()}
    return found


def test_no_import_cycles() -> None:
    graph = {file: modules_imported(file) for file in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


TECHNIQUES = {"late_qat", "averaging", "loops"}
OBSERVERS = ("callbacks/monitor.py", "callbacks/run_log.py", "callbacks/progress.py", "callbacks/warmup.py")
OBSERVERS += ("callbacks/progress_bar.py",)
OBSERVERS += ("callbacks/summary.py", "callbacks/scoring.py", "records/pack.py", "records/submission.py")


@pytest.mark.parametrize("file", OBSERVERS)
def test_observers_know_no_technique(file: str) -> None:
    source = (ROOT / file).read_text()
    imported_files = {path.stem for path in modules_imported(ROOT / file)}
    assert not imported_files & TECHNIQUES
    assert not [name for name in ("late_qat", "LateQAT", "averaging", "snapshot", "Loops") if name in source]
