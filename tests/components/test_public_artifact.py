"""The public file format: what the public exporter writes is read, and its reader takes what is written."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file

from components.artifact import MAX_FILE_BYTES, write_artifact
from components.errors import UserError
from components.public_artifact import read_public_artifact, write_public_artifact
from components.quantization import StoredTensor, quantize
from components.storage import Storage
from tests.components.support import assert_same, at_most_a_gibibyte_more, gaussian_state, mutate, small_tensors
from tests.support import GOLDEN, needs_golden, recipe_stored

GOLDEN_FILE = GOLDEN / "artifact.int5int6.ptz"


def saved_in(path: Path) -> dict:
    """What the public reader finds in a file."""
    return torch.load(io.BytesIO(zstandard.decompress(path.read_bytes())), map_location="cpu")


def public_dequantized(saved: dict) -> dict[str, torch.Tensor]:
    """Float32 weights by the format's description, without this project's code."""
    weights = {}
    for name, kind in saved["m"].items():
        if isinstance(kind, dict):
            weights[name] = saved["w"][f"{name}.q"].float() * saved["w"][f"{name}.scale"].float()[:, None]
        else:
            weights[name] = saved["w"][name].float()
    return weights


# The golden file


@needs_golden
def test_the_golden_file_holds_what_this_project_exports() -> None:
    ours = recipe_stored(load_file(GOLDEN / "trained.safetensors"))
    assert_same(ours, read_public_artifact(GOLDEN_FILE))


@needs_golden
def test_the_golden_weights_are_written_as_the_golden_file_is(tmp_path: Path) -> None:
    path = tmp_path / "model.int5int6.ptz"
    tensors = recipe_stored(load_file(GOLDEN / "trained.safetensors"))
    assert write_public_artifact(path, tensors) == path.stat().st_size
    ours, golden = saved_in(path), saved_in(GOLDEN_FILE)
    assert ours["m"] == golden["m"]
    plain = {name: kind["type"] if isinstance(kind, dict) else kind for name, kind in ours["m"].items()}
    assert plain == json.loads((GOLDEN / "tensor_types.json").read_text())
    assert ours["w"].keys() == golden["w"].keys()
    for name, weight in golden["w"].items():
        assert ours["w"][name].dtype == weight.dtype
        assert torch.equal(ours["w"][name], weight), name


# Writing


def test_gaussian_weights_take_less_in_the_project_s_format(tmp_path: Path) -> None:
    tensors = recipe_stored(gaussian_state(1, 512, 1024, 4096))
    own = write_artifact(tmp_path / "model.golf", {}, tensors)
    public = write_public_artifact(tmp_path / "model.ptz", tensors)
    assert own <= 0.975 * public


def test_what_is_written_dequantizes_by_the_public_rules(tmp_path: Path) -> None:
    tensors = small_tensors() | {"large": quantize(torch.randn(256, 257), Storage.FLOAT16)}
    write_public_artifact(tmp_path / "small.ptz", tensors)
    saved = saved_in(tmp_path / "small.ptz")
    assert saved["m"]["large"] == "passthrough_fp16"
    assert saved["m"]["vector"] == "passthrough"
    assert saved["m"]["six"] == {"type": "int6"}
    for name, weight in public_dequantized(saved).items():
        assert torch.equal(weight, tensors[name].dequantize()), name
    assert_same(read_public_artifact(tmp_path / "small.ptz"), tensors)


def test_a_view_is_written_without_what_lies_behind_it(tmp_path: Path) -> None:
    table = torch.randn(4000, 100).half()
    size = write_public_artifact(tmp_path / "view.ptz", {"w": StoredTensor(Storage.FLOAT16, table[:2])})
    assert size < 2000


def test_a_public_file_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write_public_artifact(tmp_path / "nowhere" / "model.ptz", small_tensors())
    assert not any(tmp_path.iterdir())


# Files that are not sound


def compressed_save(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return zstandard.compress(buffer.getvalue())


def expect_error(path: Path, content: bytes, pattern: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught, at_most_a_gibibyte_more():
        read_public_artifact(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a sound public artifact: ")
    assert message.endswith("; copy or export it again.")
    assert re.search(pattern, message), message


CODES, SCALES, HALVES = torch.ones(2, 3, dtype=torch.int8), torch.ones(2).half(), torch.ones(4).half()
INT5 = {"a": {"type": "int5"}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.ones(3), "does not hold a torch.save of"),
        ({"w": {}}, "does not hold a torch.save of"),
        ({"w": [], "m": {}}, "does not hold a torch.save of"),
        ({"w": {3: HALVES}, "m": {}}, "does not hold a torch.save of"),
        ({"w": {"a": "text"}, "m": {}}, "something other than plain tensors"),
        ({"w": {"a": HALVES.to_sparse()}, "m": {}}, "something other than plain tensors"),
        ({"w": {}, "m": {"a": "passthrough"}}, "it lacks a$"),
        ({"w": {"a": HALVES.float()}, "m": {"a": "passthrough"}}, "a as torch.float32 where torch.float16 is due"),
        ({"w": {"a": HALVES}, "m": {"a": "passthrough_int4"}}, "gives a the type 'passthrough_int4', which this"),
        ({"w": {"a": HALVES}, "m": {"a": {"type": "int4"}}}, "gives a the type {'type': 'int4'}, which this program"),
        ({"w": {"a": HALVES}, "m": {"a": {"type": "float16"}}}, "gives a the type {'type': 'float16'}, which this"),
        ({"w": {"a": HALVES}, "m": {"a": HALVES}}, "gives a the type tensor.*which this program"),
        ({"w": {"a.q": CODES}, "m": INT5}, "it lacks a.scale$"),
        ({"w": {"a.scale": SCALES}, "m": INT5}, "it lacks a.q$"),
        ({"w": {"a.q": CODES.short(), "a.scale": SCALES}, "m": INT5}, "a.q as torch.int16 where torch.int8 is due"),
        ({"w": {"a.q": CODES[0], "a.scale": SCALES}, "m": INT5}, "codes and scales for a do not fit together"),
        ({"w": {"a.q": CODES[:, 0], "a.scale": SCALES}, "m": INT5}, "codes and scales for a do not fit together"),
        ({"w": {"a.q": CODES.T, "a.scale": SCALES}, "m": INT5}, "codes and scales for a do not fit together"),
        ({"w": {"a.q": CODES * 16, "a.scale": SCALES}, "m": INT5}, "values for a that no export writes"),
        ({"w": {"a.q": CODES, "a.scale": SCALES / 0}, "m": INT5}, "values for a that no export writes"),
        ({"w": {"a": HALVES * torch.nan}, "m": {"a": "passthrough"}}, "values for a that no export writes"),
        ({"w": {"a": HALVES[:1].expand(64_000_001)}, "m": {"a": "passthrough"}}, "more than 64,000,000 values"),
        ({"w": {"a": HALVES[:1].expand(10**6, 10**12)}, "m": {"a": "passthrough"}}, "more than 64,000,000 values"),
    ],
)  # fmt: skip
def test_contents_that_are_not_a_public_artifact(tmp_path: Path, content: object, reason: str) -> None:
    expect_error(tmp_path / "model.ptz", compressed_save(content), reason.replace("$", "; copy"))


def compressed_twice(content: object) -> bytes:
    """A torch.save whose entries are compressed, as torch reads and never writes it."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(zstandard.decompress(compressed_save(content)))) as plain,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in plain.infolist():
            archive.writestr(entry.filename, plain.read(entry))
    return zstandard.compress(buffer.getvalue())


class Unsafe:
    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return (print, ("code in the file was run",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zstandard.compress(b"text"), "does not hold a torch.save of"),
        (zstandard.compress(b""), "does not hold a torch.save of"),
        (compressed_save({"w": {}, "m": {}})[:-1], "no whole zstd frame of a possible size"),
        (compressed_save({"w": {}, "m": {}}) + b"x", "no whole zstd frame of a possible size"),
        (b"\x28\xb5\x2f\xfd", "no whole zstd frame of a possible size"),
        (zstandard.compress(bytes(MAX_FILE_BYTES + 1)), "decompresses to more than 192,000,000 bytes"),
        (
            compressed_twice({"w": {"a": torch.zeros(10**7).half()}, "m": {"a": "passthrough"}}),
            "does not hold a torch.save of",
        ),
    ],
)
def test_bytes_that_are_not_a_public_artifact(tmp_path: Path, content: bytes, reason: str) -> None:
    expect_error(tmp_path / "model.ptz", content, reason)


def test_a_bomb_that_does_not_state_its_size_is_refused(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    chunk = bytes(1 << 20)
    bomb = b"".join(compressor.compress(chunk) for _ in range(300)) + compressor.flush()
    expect_error(tmp_path / "bomb.ptz", bomb, "no whole zstd frame of a possible size")


def test_a_file_that_does_not_state_its_size_is_read(tmp_path: Path) -> None:
    write_public_artifact(tmp_path / "model.ptz", small_tensors())
    content = zstandard.decompress((tmp_path / "model.ptz").read_bytes())
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    (tmp_path / "model.ptz").write_bytes(compressor.compress(content) + compressor.flush())
    assert_same(read_public_artifact(tmp_path / "model.ptz"), small_tensors())


def test_no_code_in_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_error(
        tmp_path / "unsafe.ptz", compressed_save({"w": {"a": Unsafe()}, "m": {}}), "does not hold a torch.save"
    )
    assert "run" not in capsys.readouterr().out


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"text")
    with pytest.raises(UserError, match="text is not a sound public artifact: it is no whole zstd frame"):
        read_public_artifact(tmp_path / "text")


def test_mutated_files_are_refused_or_read_whole(tmp_path: Path) -> None:
    """The format has no checksum, so a mutated number looks like another weight; nothing else may come of it."""
    write_public_artifact(tmp_path / "sound.ptz", small_tensors())
    content = zstandard.decompress((tmp_path / "sound.ptz").read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for index in range(600):
        mutated = mutate(content, generator)
        compressed = zstandard.compress(mutated)
        (tmp_path / "mutated.ptz").write_bytes(compressed if index % 2 else mutate(compressed, generator))
        try:
            with at_most_a_gibibyte_more():
                tensors = read_public_artifact(tmp_path / "mutated.ptz")
        except UserError:
            refused += 1
        else:
            assert all(tensor.is_sound() for tensor in tensors.values())
    assert refused > 300
