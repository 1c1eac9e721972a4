"""Which settings of a run differ, from its configuration file or from those of other runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from records.report.record import Record

MISSING = object()
IGNORED = ("config", "ckpt_path")
"""Settings that say where a run came from, not what it is."""


@dataclass(frozen=True)
class Change:
    """A setting with another value than the configuration file gives it.

    Attributes:
        name: its dotted name.
        value: the run's.
        before: the configuration file's, or the program's default where the file is silent.
        source: what set it.
    """

    name: str
    value: Any
    before: Any
    source: str


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; lists are values."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def base_name(record: Record) -> str | None:
    """What a run's settings are compared with: its first configuration file, or else the program's defaults."""
    layers = record.start.get("layers", [])
    return None if not layers else str(layers[min(1, len(layers) - 1)][0])


def changes(record: Record) -> list[Change]:
    """The settings that differ from the run's first configuration file, or from the defaults if it had none.

    What neither a later file nor the command line set, the program has filled in, such as a vocabulary's size.
    """
    layers = [(str(name), flatten(content or {})) for name, content in record.start.get("layers", [])]
    if not layers:
        return []
    base = {name: value for _, content in layers[:2] for name, value in content.items()}
    words = record.start.get("command", [])
    found = []
    for name, value in flatten(record.config).items():
        before = base.get(name, MISSING)
        if name.split(".")[0] in IGNORED or same(value, before) or (before is MISSING and value is None):
            continue
        source = next((label for label, content in reversed(layers[2:]) if name in content), "filled in")
        if _names(words, name):
            source = "command line"
        found.append(Change(name, value, before, source))
    return found


def differing(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs: each run's value by name, `MISSING` where it has none."""
    settings = [flatten(record.config) for record in records]
    names = dict.fromkeys(name for flat in settings for name in flat if name.split(".")[0] not in IGNORED)
    values = {name: [flat.get(name, MISSING) for flat in settings] for name in names}
    return {name: row for name, row in values.items() if not all(same(row[0], value) for value in row)}


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; 1 and 1.0 are, and so are a value and its text."""
    return one is other or one == other or (MISSING not in (one, other) and written(one) == written(other))


def written(value: Any) -> str:
    """A value as it is read in a table."""
    if value is MISSING:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _names(words: Sequence[str], name: str) -> bool:
    """Whether a command line sets this setting or the section that it is in."""
    given = {word.split("=")[0].removeprefix("--").rstrip("+") for word in words if word.startswith("--")}
    parts = [part for part in name.split(".") if part != "init_args"]
    return not given.isdisjoint(".".join(parts[:i]) for i in range(1, len(parts) + 1)) or name in given
