"""The self-contained ``train_gpt.py``, made from the project's own sources and one run's configuration.

It contains the modules that `command_line.run` imports, those that the configuration names by class path, and all that
these import. What only shows a run to people, and the early checks of settings, are imported by ``cli.py`` alone, and
left out, as are imports inside functions, which are not needed to train and score. The modules that say most about the
model go in unchanged, as many as the limit allows, or else in clear text without comments. The others lose their
comments, docstrings, unused definitions and most annotations, and are compressed. The cost is that most of the
project's plumbing cannot be read in the file: ``train_gpt.py unpack FOLDER`` writes it out without comments, and the
project itself has them. The same sources and settings give the same bytes.
"""

from __future__ import annotations

import ast
import base64
import bz2
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install

from components.artifact import MAX_BYTES
from components.errors import UserError
from records.stripping import shake, strip

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("packed_script.py")
ENTRY = "command_line/run.py"
MODEL = "lightning_modules/gpt.py"
"""Where a reader of the model starts."""

MAX_SCRIPT_BYTES = 180_000
"""Clear text is added up to this size, if artifact and code stay under the cap."""

_LINE = 4000


@dataclass(frozen=True)
class Script:
    """A packed script.

    Attributes:
        text: the file's content.
        readable: its modules in clear text.
        packed: its compressed modules.
    """

    text: str
    readable: list[str]
    packed: list[str]

    @property
    def num_bytes(self) -> int:
        """The file's size, which counts as code."""
        return len(self.text.encode())


def build_script(config: str, bytes_model: int = 0) -> Script:
    """Pack the project, with a run's configuration as its default settings.

    Args:
        config: the run's whole configuration, as YAML.
        bytes_model: size of the largest artifact submitted with the script.

    Raises:
        UserError: even with every module compressed, script and artifact are over the cap.
    """
    settings, sources, bare = _sources(config)
    max_bytes = min(MAX_SCRIPT_BYTES, MAX_BYTES - bytes_model)
    readable: dict[str, str] = {}
    script = _assemble(settings, bare, readable)
    if script.num_bytes > max_bytes:
        raise UserError(
            f"The sources that {ENTRY} needs make a script of {script.num_bytes:,} bytes, but an artifact of "
            f"{bytes_model:,} bytes leaves {max_bytes:,}; make the network smaller."
        )
    for file in sources:
        for source in (sources[file], bare[file]):
            larger = _assemble(settings, bare, {**readable, file: source})
            if source.strip() and larger.num_bytes <= max_bytes:
                readable, script = {**readable, file: source}, larger
                break
    return script


def compressed_bytes(config: str) -> int:
    """Size of a configuration's script with every module compressed: what a run counts as code.

    Args:
        config: the run's whole configuration, as YAML.
    """
    settings, _, bare = _sources(config)
    return _assemble(settings, bare, {}).num_bytes


def _sources(config: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """The settings as text, and the sources they need, unchanged and stripped, most informative first."""
    content = yaml.safe_load(config)
    settings = clear_settings(content)
    sources = {file: (ROOT / file).read_text() for file in needed_files(_class_files(content))}
    bare = shake({file: strip(source) for file, source in sources.items()}, TEMPLATE.read_text() + settings)
    return settings, sources, bare


def needed_files(named: Sequence[str] = ()) -> list[str]:
    """The project's files that training and scoring import, those that say most about the model first.

    Args:
        named: files of the classes that the configuration names.
    """
    found: dict[str, None] = {}
    for start in (MODEL, *named, ENTRY):
        todo = [start]
        while todo:
            file = todo.pop(0)
            if file not in found:
                found[file] = None
                todo += _imports(ast.parse((ROOT / file).read_text()).body)
    return list(found)


def _class_files(settings: Any) -> list[str]:
    """The project's files that define the classes which settings name by class path."""
    files = ["/".join(path.split(".")[:-1]) + ".py" for path in _class_paths(settings)]
    return [file for file in dict.fromkeys(files) if (ROOT / file).is_file()]


def _class_paths(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict):
        for name, value in settings.items():
            if name == "class_path":
                yield str(value)
            yield from _class_paths(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _class_paths(value)


def clear_settings(settings: dict[str, Any]) -> str:
    """A run's settings as YAML, without those that are unset or specific to its machine."""
    kept = {section: value for section, value in settings.items() if value is not None and section != "ckpt_path"}
    kept["trainer"] = {name: value for name, value in settings["trainer"].items() if value is not None}
    kept["trainer"]["default_root_dir"] = "runs"
    return yaml.safe_dump(kept, sort_keys=False)


def _assemble(settings: str, bare: dict[str, str], readable: dict[str, str]) -> Script:
    packed = [file for file in bare if file not in readable]
    archive = "\0".join(f"{file}\n{bare[file]}" for file in packed).encode()
    data = base64.b85encode(bz2.compress(archive)).decode()  # on so little text better than LZMA, by a twentieth
    wrapped = "\n".join(data[i : i + _LINE] for i in range(0, len(data), _LINE))
    clear = "".join(f"READABLE[{file!r}] = {_raw(source)}\n" for file, source in readable.items())
    template = TEMPLATE.read_text()
    for line, replacement in (
        ('CONFIG = ""\n', f"CONFIG = {_raw(settings)}\n"),
        ("READABLE: dict[str, str] = {}\n", f"READABLE: dict[str, str] = {{}}\n{clear}"),
        ('PACKED = ""\n', f"PACKED = {_raw(wrapped)}\n"),
    ):
        assert template.count(line) == 1
        template = template.replace(line, replacement)
    template = re.sub(r" # type: ignore\[[\w-]+\]", "", template).replace(" \n", "\n")
    return Script(template, list(readable), packed)


def _raw(text: str) -> str:
    assert "'''" not in text
    assert text[-1] not in "'\\"
    return f"r'''{text}'''"


def _imports(nodes: Iterable[ast.AST]) -> list[str]:
    """The project's files that statements import, including the packages on the path."""
    names = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    files = []
    for name in names:
        parts = name.split(".")
        files += ["/".join(parts[:i]) + "/__init__.py" for i in range(1, len(parts) + 1)]
        files.append("/".join(parts) + ".py")
    return [file for file in files if (ROOT / file).is_file()]
