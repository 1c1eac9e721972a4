"""What the demo prints at its end."""

import json
import re
from pathlib import Path
from typing import Any

import demo
from tests.support import FinishedRun

RIVALS = {"zstd -22": 2.5, "xz -9e that knows the training text": 1.7}


def finished(run: FinishedRun) -> dict[str, Any]:
    return {**json.loads((run.logs / "summary.json").read_text()), "log_folder": run.logs}


def rows(table: str) -> dict[str, str]:
    pairs = (line.strip().split("  ", maxsplit=1) for line in table.strip().splitlines())
    return {name: value.strip() for name, value in pairs}


def test_the_table_names_every_rival_and_the_score(finished_run: FinishedRun) -> None:
    found = rows(demo._table(finished(finished_run), {"val_bpb": 1.25}, RIVALS, 64_000, 100.0))
    assert found["bits per byte after export, fresh process"] == "1.2500"
    assert {name: found[f"bits per byte of {name}"] for name in RIVALS} == {
        "zstd -22": "2.5000",
        "xz -9e that knows the training text": "1.7000",
    }
    assert found["scored text"] == "64,000 bytes"


def test_the_table_names_the_report_if_there_is_one(finished_run: FinishedRun, tmp_path: Path) -> None:
    fitted = {**finished(finished_run), "log_folder": tmp_path}
    assert "report" not in rows(demo._table(fitted, fitted, RIVALS, 1, 1.0))
    (tmp_path / "report.html").touch()
    assert rows(demo._table(fitted, fitted, RIVALS, 1, 1.0))["report"] == str(tmp_path / "report.html")


def test_the_exported_model_writes_a_text_for_each_beginning(finished_run: FinishedRun) -> None:
    artifact, tokenizer = Path(finished(finished_run)["artifact"]), finished_run.data / "tokenizer.model"
    written = demo._samples(artifact, tokenizer)
    assert len(set(demo.PROMPTS)) == 3
    for prompt in demo.PROMPTS:
        assert re.search(rf"^  \| {prompt}.", written, re.MULTILINE)
    assert demo._samples(artifact, tokenizer) == written
