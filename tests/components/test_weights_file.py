"""Float weights as a .safetensors file: from here, from elsewhere, and whatever else stands in one."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from components.errors import UserError
from components.weights_file import MAX_FILE_BYTES, read_weights, write_weights
from tests.components.support import SETTINGS, at_most_a_gibibyte_more, mutate

WEIGHTS = {
    "matrix": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
    "scalar": torch.tensor(0.1),
    "empty": torch.zeros(0, 3),
}


def raw_file(header: object, body: bytes = b"") -> bytes:
    """The published format, written by hand: the header's length, the header, the values."""
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + body


def one_value(dtype: str, num_bytes: int = 4, **header: object) -> bytes:
    return raw_file({"w": {"dtype": dtype, "shape": [1], "data_offsets": [0, num_bytes]}, **header}, bytes(num_bytes))


def expect_error(path: Path, content: bytes, pattern: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert str(path) in message
    assert message.endswith("; give a .safetensors file of float weights.")


def test_reading_gives_back_settings_and_weights(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", SETTINGS, WEIGHTS)
    found = read_weights(tmp_path / "model.safetensors")
    assert found.settings == SETTINGS
    assert {name: type(value) for name, value in found.settings.items()} == {n: type(v) for n, v in SETTINGS.items()}
    assert found.weights.keys() == WEIGHTS.keys()
    for name, weight in found.weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, WEIGHTS[name])


def test_another_program_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, SETTINGS, {name: torch.nn.Parameter(weight) for name, weight in WEIGHTS.items()})
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["settings"]) == SETTINGS
        assert set(file.keys()) == set(WEIGHTS)
        assert torch.equal(file.get_tensor("matrix"), WEIGHTS["matrix"])


def test_a_view_and_half_precision_are_written_as_the_float32_that_they_show(tmp_path: Path) -> None:
    table = torch.randn(6, 8)
    write_weights(tmp_path / "model.safetensors", {}, {"view": table[:, ::2].T, "half": table.bfloat16()})
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    assert torch.equal(found["view"], table[:, ::2].T)
    assert torch.equal(found["half"], table.bfloat16().float())


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write_weights(tmp_path / "nowhere" / "model.safetensors", SETTINGS, WEIGHTS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float_weights_from_elsewhere_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in WEIGHTS.items()}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    found = read_weights(tmp_path / "model.safetensors")
    assert found.settings is None
    for name, weight in found.weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[name].float())


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "epoch": "3"}])
def test_metadata_of_another_program_holds_no_settings(tmp_path: Path, metadata: dict | None) -> None:
    (tmp_path / "model.safetensors").write_bytes(one_value("F32", __metadata__=metadata))
    assert read_weights(tmp_path / "model.safetensors").settings is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_type_are_named(tmp_path: Path, dtype: torch.dtype) -> None:
    content = safetensors.torch.save({"fine": torch.ones(2), "strange": torch.ones(2).to(dtype)})
    expect_error(tmp_path / "model.safetensors", content, f"holds strange as {dtype};")


@pytest.mark.parametrize(
    "settings", [[], 3, "text", {"num_layers": [None]}, {"num_layers": [2]}, {"num_layers": {"a": 1}}], ids=str
)
def test_settings_that_are_not_a_network_s_are_refused(tmp_path: Path, settings: object) -> None:
    content = one_value("F32", __metadata__={"settings": json.dumps(settings)})
    expect_error(tmp_path / "model.safetensors", content, "^The settings in the metadata of .* are not a network's;")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"something else",
        b"\xff" * 8,
        raw_file([]),
        raw_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)),
        raw_file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [0, 2**62, 4], "data_offsets": [0, 0]}}),
        raw_file({"w": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}),
        raw_file({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**64]}}, bytes(4)),
        raw_file({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}, bytes(4)),
        raw_file(  # overlapping
            {
                "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            bytes(12),
        ),
        raw_file(  # a hole
            {
                "v": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                "w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
            },
            bytes(12),
        ),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000_000) + b"{}",
        raw_file({"x" * (1 << 20): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        one_value("F128"),
        one_value("F8_E8M0", 1),
        one_value("F32", __metadata__={"settings": "{"}),
        one_value("F32", __metadata__={"settings": "[" * 100_000}),
        one_value("F32", __metadata__=[]),
    ],
)
def test_what_is_not_sound_is_refused(tmp_path: Path, content: bytes) -> None:
    expect_error(tmp_path / "model.safetensors", content, "is not a sound .safetensors file;")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "whole.safetensors", SETTINGS, WEIGHTS)
    data = (tmp_path / "whole.safetensors").read_bytes()
    for length in range(0, len(data), 7):
        expect_error(tmp_path / "cut.safetensors", data[:length], "is not a sound .safetensors file;")


def test_mutated_files_are_refused_or_read_whole(tmp_path: Path) -> None:
    """The format has no checksum, so a mutated number looks like another weight; nothing else may come of it."""
    path = tmp_path / "model.safetensors"
    write_weights(path, SETTINGS, WEIGHTS)
    data, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(2000):
        path.write_bytes(mutate(data, generator))
        try:
            with at_most_a_gibibyte_more():
                found = read_weights(path)
        except UserError:
            refused += 1
        else:
            assert all(weight.dtype == torch.float32 for weight in found.weights.values())
            # Whatever a header claims, no more is read than the file holds.
            assert sum(weight.numel() for weight in found.weights.values()) <= path.stat().st_size
    assert refused > 1000


def test_more_values_than_an_artifact_may_hold_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2, 33 * 10**6], "data_offsets": [0, 132 * 10**6]}}).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 132 * 10**6)
    with at_most_a_gibibyte_more(), pytest.raises(UserError, match=r"holds more than 64,000,000 values; give"):
        read_weights(path)


def test_a_missing_and_an_enormous_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        read_weights(tmp_path / "missing.safetensors")
    with (tmp_path / "enormous").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="so it is not a model; give a file that a fit left"):
        read_weights(tmp_path / "enormous")
