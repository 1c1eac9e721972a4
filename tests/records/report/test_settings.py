"""Which settings differ, on hand-written configurations."""

from pathlib import Path
from typing import Any

from records.report.record import Record
from records.report.settings import MISSING, Change, base_name, changes, differing, flatten

DEFAULTS = {"a": 1, "section": {"x": 1, "y": 2}, "vocab": None}
FIRST = {"section": {"x": 5}}
OVERLAY = {"section": {"y": 7}}


def record(config: dict[str, Any], layers: list[Any], *command: str) -> Record:
    return Record(Path("run"), {}, config, [{"kind": "start", "command": list(command), "layers": layers}])


def test_settings_are_compared_with_the_first_file_over_the_defaults() -> None:
    config = {"a": 3, "section": {"x": 5, "y": 7}, "vocab": 1024, "config": ["run.yaml"]}
    layers = [["defaults", DEFAULTS], ["run.yaml", FIRST], ["small.yaml", OVERLAY]]
    run = record(config, layers, "fit", "--config", "run.yaml", "--a=3")
    assert base_name(run) == "run.yaml"
    assert changes(run) == [
        Change("a", 3, 1, "command line"),
        Change("section.y", 7, 2, "small.yaml"),
        Change("vocab", 1024, None, "filled in"),
    ]


def test_without_a_file_they_are_compared_with_the_defaults() -> None:
    run = record(
        {"a": 1, "section": {"x": 2, "y": 2}, "vocab": None}, [["defaults", DEFAULTS]], "fit", "--section.x", "2"
    )
    assert base_name(run) == "defaults"
    assert changes(run) == [Change("section.x", 2, 1, "command line")]


def test_numbers_and_their_texts_are_the_same() -> None:
    layers = [["defaults", {"a": 1, "b": "cpu", "c": "0.5"}]]
    assert changes(record({"a": 1.0, "b": "cpu", "c": 0.5}, layers)) == []


def test_a_run_without_a_history_has_nothing_to_compare_with() -> None:
    run = Record(Path("run"), {}, {"a": 1}, [])
    assert base_name(run) is None
    assert changes(run) == []


def test_runs_differ_in_values_and_in_what_they_have() -> None:
    one = record({"seed": 1, "same": [1, 2], "ckpt_path": "x"}, [])
    other = record({"seed": 2, "same": [1, 2], "more": {"z": 0}}, [])
    assert differing([one, other]) == {"seed": [1, 2], "more.z": [MISSING, 0]}


def test_flattening_keeps_lists_and_empty_sections() -> None:
    assert flatten({"a": {"b": [1], "c": {}}, "d": None}) == {"a.b": [1], "a.c": {}, "d": None}
