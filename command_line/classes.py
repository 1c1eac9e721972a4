"""Classes that settings name without their module, as ``--scorer ScoreFirstTraining`` does."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("components", "callbacks", "datamodules", "lightning_modules")
"""Packages whose classes may be named without their module."""


def import_named_classes(words: Sequence[str]) -> None:
    """Import the project's modules whose classes a command line or its configuration files name.

    The parser resolves the short names of imported classes only. Help and completion list only those, so for them
    every class of ``components`` is imported.

    Args:
        words: The command line.
    """
    lists_choices = any(
        word == "-h" or word.endswith("help") or word.startswith("--print_completion") for word in words
    )
    text = "\n".join(words)
    for word in words:
        path = Path(word.removeprefix("--config="))
        if path.suffix in (".yaml", ".yml") and path.is_file():
            text += path.read_text(errors="replace")
    named = set(re.findall(r"\w+", text))
    for package in PACKAGES:
        for file in sorted((ROOT / package).glob("*.py")):
            classes = re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE)
            if named.intersection(classes) or (classes and package == "components" and lists_choices):
                importlib.import_module(f"{package}.{file.stem}")
