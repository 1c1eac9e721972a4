"""The audit on scripts and folders of this project's own making."""

import shutil
from pathlib import Path

import pytest

from records import script
from records.audit.checks import audit, judge
from records.audit.script_text import read_script
from records.audit.verdicts import State
from tests.records.audit.support import CHECKS, case_of, edit_json, edit_log
from tests.records.conftest import Made
from tests.support import ROOT

RECORD_PARAMS = 24_730_705
"""Parameters of the public network that the record's configuration describes."""


@pytest.fixture(scope="module")
def packed() -> script.Script:
    return script.build_script((ROOT / "configs" / "record_10l.yaml").read_text())


def test_a_packed_script_gives_its_modules_and_settings(packed: script.Script) -> None:
    text = read_script(packed.text.encode())
    assert text.packed
    assert {*packed.readable, *packed.packed} == text.texts.keys() - {""}
    assert "class GPT" in text.texts["components/gpt.py"]
    assert text.settings["model.num_layers"] == 10
    assert text.settings["scoring.stride"] == 64


def test_a_packed_script_is_imported_and_builds_the_records_network(packed: script.Script, folder: Path) -> None:
    (folder / "train_gpt.py").write_text(packed.text)
    edit_log("", f"{RECORD_PARAMS} parameters, 8 ranks on cuda")(folder)
    edit_json("submission.json", num_params=RECORD_PARAMS)(folder)
    case = case_of(folder)
    for line in ("script compiles", "script imports", "network", "initial loss"):
        verdict = judge(CHECKS[line], case, None)
        assert verdict.state == State.PASS, verdict
    gate = judge(CHECKS["look: gate across documents"], case, None)
    assert (gate.state, gate.detail) == (State.LOOK, "CONFIG: smear_across_documents is true")


@pytest.mark.slow
def test_a_packed_folder_passes_every_line_that_a_run_on_a_cpu_can(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.folder, tmp_path / "submission"))
    verdicts = audit(case_of(folder, made.data))
    left = {verdict.check for verdict in verdicts if verdict.state not in (State.PASS, State.LOOK)}
    on_the_track = {"training seconds", "scoring seconds", "recorded scoring seconds"}
    assert {check for check in left if not check.startswith("look: ")} == on_the_track
    assert [v.state for v in verdicts if v.check == "script's own score"] == [State.PASS] * 2
