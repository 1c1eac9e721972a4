"""The description of a model's file, and its conversion to the public format."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from components.artifact import MAX_BYTES, write_artifact
from components.artifact_report import describe, main, weights_sha256
from components.public_artifact import read_public_artifact, write_public_artifact
from components.quantization import StoredTensor
from components.storage import Storage, StorageRule
from tests.components.support import SETTINGS, small_tensors
from tests.support import GOLDEN, ROOT, needs_golden


def report(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.artifact_report", file]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_description_shows_settings_tensors_totals_and_checksums(small_file: Path) -> None:
    lines = report(small_file).stdout.splitlines()  # of a fresh process, which knows nothing but the file
    assert lines == describe(small_file).splitlines()
    assert "  num_layers        2" in lines
    assert '  output_proj_init  "zero"' in lines
    (five,) = [line.split() for line in lines if line.startswith("five ")]
    assert five[1:4] == ["int5", "6x40", "240"]
    assert float(five[5]) == pytest.approx(8 * int(five[4]) / 240, abs=0.02)
    size = small_file.stat().st_size
    table = {line[:12].strip(): line.replace(",", "").split() for line in lines}
    assert int(table["all tensors"][3]) + int(table["header, stat"][-1]) == pytest.approx(size, abs=1)
    assert f"{size:,} bytes, {MAX_BYTES - size:,} under the cap of 16,000,000 for artifact and code" in lines
    assert f"sha256 of the file     {hashlib.sha256(small_file.read_bytes()).hexdigest()}" in lines
    assert f"sha256 of the weights  {weights_sha256(small_tensors())}" in lines


def test_beside_the_float_weights_each_tensor_shows_its_error(small_file: Path) -> None:
    floats = {name: tensor.dequantize() for name, tensor in small_tensors().items()}
    floats["five"] = 1.25 * floats["five"]  # the file's values are a fifth short of these
    lines = describe(small_file, floats).splitlines()
    [heading] = [line for line in lines if line.startswith("tensor ")]
    assert heading.endswith("bits per weight  relative error")
    names = {line: line[: heading.index("type")].strip() for line in lines}  # some have spaces
    error_of = {name: line.split()[-1] for line, name in names.items() if name in floats}
    assert error_of == {name: "2.00e-01" if name == "five" else "0.00e+00" for name in floats}


def test_the_description_shows_the_storage_rules_in_their_order(tmp_path: Path) -> None:
    rules = [
        StorageRule("blocks.*", "int5", qat=True),
        StorageRule("*", "float16", at_most=65_536),
        StorageRule("*", "int8"),
    ]
    write_artifact(tmp_path / "model.golf", SETTINGS, small_tensors(), rules)
    assert [line for line in describe(tmp_path / "model.golf").splitlines() if "stored as" in line] == [
        "  stored as int5     blocks.*, seen by late QAT",
        "  stored as float16  * of at most 65,536 elements",
        "  stored as int8     *",
    ]


def test_a_public_file_is_described_by_its_bytes_before_compression(tmp_path: Path) -> None:
    write_public_artifact(tmp_path / "model.ptz", small_tensors())
    lines = describe(tmp_path / "model.ptz").splitlines()
    assert "settings: the public format holds none" in lines
    (five,) = [line.split() for line in lines if line.startswith("five ")]
    assert five[1:5] == ["int5", "6x40", "240", "252"]  # a byte a code and a float16 scale for each of 6 rows
    assert f"sha256 of the weights  {weights_sha256(small_tensors())}" in lines


def test_a_file_over_the_cap_is_reported(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.artifact_report.MAX_BYTES", 100)
    assert f"{small_file.stat().st_size - 100:,} over the cap of 100" in describe(small_file)


def test_describing_another_file_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"text")
    result = report(tmp_path / "foreign")
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path / 'foreign'} is not an artifact; give a file that fit exported.\n"


def test_the_checksum_of_the_weights_sees_every_part() -> None:
    tensors = small_tensors()
    checksums = {weights_sha256(tensors), weights_sha256(small_tensors(seed=1))}
    five = tensors["five"]
    checksums.add(weights_sha256(tensors | {"five": StoredTensor(Storage.INT6, five.values, five.scales)}))
    checksums.add(weights_sha256(tensors | {"five": StoredTensor(Storage.INT5, five.values, five.scales * 2)}))
    checksums.add(weights_sha256({name + "x": tensor for name, tensor in tensors.items()}))
    assert len(checksums) == 5
    assert weights_sha256(dict(reversed(tensors.items()))) == weights_sha256(tensors)


@needs_golden
def test_the_command_converts_an_artifact_to_the_golden_public_file(tmp_path: Path) -> None:
    own, public, golden = tmp_path / "model.golf", tmp_path / "model.int5int6.ptz", GOLDEN / "artifact.int5int6.ptz"
    write_artifact(own, {"num_layers": 3}, read_public_artifact(golden))
    main([str(own), "--format", "public", "--out", str(public)])
    assert weights_sha256(read_public_artifact(public)) == weights_sha256(read_public_artifact(golden))


def test_the_command_wants_a_format_and_a_file_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "model.golf"), "--format", "public"])
    assert stop.value.code == 2
    assert "--format and --out go together" in capsys.readouterr().err
