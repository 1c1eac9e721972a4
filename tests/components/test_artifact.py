"""The artifact: lossless, small, the same bytes always, and safe against whatever stands in a file."""

import builtins
import errno
import hashlib
import json
import os
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from components import artifact as artifact_module
from components.artifact import (
    MAX_BYTES,
    MAX_ELEMENTS,
    MAX_FILE_BYTES,
    load_state,
    parse_artifact,
    read_artifact,
    require_zstandard,
    store_state,
    write_artifact,
)
from components.artifact_report import describe, weights_sha256
from components.errors import UserError
from components.quantization import Storage, StoredTensor, quantize
from tests.support import GOLDEN, needs_golden

ROOT = Path(__file__).resolve().parents[2]
PUBLIC_GOLDEN_BYTES = 2_471_498
SETTINGS = {"num_layers": 2, "rope_base": 10000.0, "tie_embeddings": True, "output_proj_init": "zero"}


def small_tensors(seed: int = 0) -> dict[str, StoredTensor]:
    """A tensor of every storage and of every odd shape, few values in all."""
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "five": quantize(weight(6, 40), Storage.INT5),
        "six": quantize(weight(5, 30), Storage.INT6),
        "eight": quantize(weight(4, 20) * 3, Storage.INT8),
        "empty codes": quantize(weight(3, 0).new_zeros(3, 2)[:0], Storage.INT8),
        "vector": quantize(weight(7), Storage.FLOAT16),
        "cube": quantize(weight(2, 3, 4), Storage.FLOAT16),
        "scalar": quantize(weight(), Storage.FLOAT16),
        "empty": quantize(weight(0, 5), Storage.FLOAT16),
    }


def assert_same(one: dict[str, StoredTensor], other: dict[str, StoredTensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.storage is other[name].storage
        for part, other_part in [(tensor.values, other[name].values), (tensor.scales, other[name].scales)]:
            if part is None:
                assert other_part is None
            else:
                assert part.dtype == other_part.dtype
                assert part.shape == other_part.shape
                assert part.numpy().tobytes() == other_part.numpy().tobytes(), name


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "small.golf"
    write_artifact(path, SETTINGS, small_tensors())
    return path


def sealed(header: bytes, model: bytes, values: bytes, version: int = 1) -> bytes:
    """A file of these parts whose lengths and checksum are right, whatever else is not."""
    preamble = struct.pack(
        "<8sIIIQ", b"\x89GOLF\r\n\x1a", version, len(header), len(model), 44 + len(header) + len(model) + len(values)
    )
    rest = header + model + values
    return preamble + hashlib.blake2b(preamble + rest, digest_size=16).digest() + rest


def parts_of(data: bytes) -> tuple[bytes, bytes, bytes]:
    """The header and model frames and the coded values of a sound file."""
    _, _, header_bytes, model_bytes, _ = struct.unpack_from("<8sIIIQ", data)
    ends = [44 + header_bytes, 44 + header_bytes + model_bytes]
    return data[44 : ends[0]], data[ends[0] : ends[1]], data[ends[1] :]


# Lossless, small, deterministic


def test_reading_gives_back_what_was_written(small_file: Path) -> None:
    artifact = read_artifact(small_file)
    assert artifact.settings == SETTINGS
    assert [type(value) for value in artifact.settings.values()] == [int, str, float, bool]
    assert_same(artifact.tensors, small_tensors())
    assert small_file.stat().st_size == write_artifact(small_file, SETTINGS, small_tensors())


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_float16_and_any_code_survives(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, cols = data.draw(st.sampled_from([(1, 1), (3, 200), (200, 3), (150, 160)]))
    tensors = {}
    for storage, largest in [(Storage.INT5, 15), (Storage.INT6, 31), (Storage.INT8, 127)]:
        smallest = -largest if storage is Storage.INT8 else -largest - 1
        codes = torch.from_numpy(generator.integers(smallest, largest + 1, (rows, cols)).astype(np.int8))
        scales = torch.from_numpy(generator.integers(0, 0x7C00, rows).astype(np.uint16).view(np.float16))
        tensors[storage.value] = StoredTensor(storage, codes, scales)
    bits = generator.integers(0, 0x7C00, (rows, cols)) | (generator.integers(0, 2, (rows, cols)) << 15)
    tensors["halves"] = StoredTensor(Storage.FLOAT16, torch.from_numpy(bits.astype(np.uint16).view(np.float16)))
    path = tmp_path_factory.getbasetemp() / "survives.golf"
    write_artifact(path, {}, tensors)
    assert_same(read_artifact(path).tensors, tensors)


def test_an_artifact_of_nothing_is_one(tmp_path: Path) -> None:
    write_artifact(tmp_path / "none.golf", {}, {})
    assert read_artifact(tmp_path / "none.golf").tensors == {}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_order_and_threads_do_not_change_the_bytes(small_file: Path, tmp_path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    reordered = dict(reversed(small_tensors().items()))
    write_artifact(tmp_path / "again.golf", dict(reversed(SETTINGS.items())), reordered)
    assert (tmp_path / "again.golf").read_bytes() == small_file.read_bytes()


def test_a_view_is_stored_as_what_it_shows(tmp_path: Path) -> None:
    weight = torch.randn(40, 60)
    for name, view in [("transposed", weight.T), ("strided", weight[::2, ::3])]:
        write_artifact(tmp_path / name, {}, {"w": quantize(view, Storage.FLOAT16), "q": quantize(view, Storage.INT6)})
        tensors = read_artifact(tmp_path / name).tensors
        assert torch.equal(tensors["w"].dequantize(), view.half().float())
        assert torch.equal(tensors["q"].dequantize(), quantize(view, Storage.INT6).dequantize())


def gaussian_state(num_layers: int, dim: int, vocab: int, buckets: int) -> dict[str, torch.Tensor]:
    """Weights of the recipe's network, Gaussian, each row of its own scale."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"tok_emb.weight": (vocab, dim), "bigram.embed.weight": (buckets, dim // 4)}
    for i in range(num_layers):
        shapes |= {f"blocks.{i}.attn.{name}.weight": (dim, dim) for name in ("c_q", "proj")}
        shapes |= {f"blocks.{i}.attn.{name}.weight": (dim // 2, dim) for name in ("c_k", "c_v")}
        shapes |= {f"blocks.{i}.mlp.fc.weight": (3 * dim, dim), f"blocks.{i}.mlp.proj.weight": (dim, 3 * dim)}
    return {
        name: torch.randn(shape, generator=generator)
        * 0.02
        * torch.randn(shape[0], 1, generator=generator).mul(0.5).exp()
        for name, shape in shapes.items()
    }


def order_zero_bytes(tensors: dict[str, StoredTensor]) -> float:
    """Entropy of each tensor's codes, of each byte plane of its float16 values, and nothing for tables."""
    total = 0.0
    for tensor in tensors.values():
        halves = tensor.values if tensor.scales is None else tensor.scales
        planes = [halves.numpy().view(np.uint8)[..., byte::2] for byte in (0, 1)]
        for plane in [*planes, *([] if tensor.scales is None else [tensor.values.numpy().view(np.uint8)])]:
            counts = np.bincount(plane.ravel()).astype(float)
            counts = counts[counts > 0]
            total += (counts * np.log2(counts.sum() / counts)).sum() / 8
    return total


def test_gaussian_weights_take_less_than_their_order_zero_entropy(tmp_path: Path) -> None:
    tensors = store_state(gaussian_state(2, 512, 1024, 4096), num_layers=2)
    assert {tensor.storage for tensor in tensors.values()} == set(Storage)
    assert write_artifact(tmp_path / "gaussian.golf", {}, tensors) < 0.999 * order_zero_bytes(tensors)
    assert_same(read_artifact(tmp_path / "gaussian.golf").tensors, tensors)


@needs_golden
def test_the_golden_weights_take_nine_tenths_of_the_public_file(tmp_path: Path) -> None:
    tensors = store_state(load_file(GOLDEN / "trained.safetensors"), num_layers=3)
    config = json.loads((GOLDEN / "config.json").read_text())
    plain = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
    size = write_artifact(tmp_path / "golden.golf", plain, tensors)
    assert size <= 0.90 * PUBLIC_GOLDEN_BYTES
    assert_same(read_artifact(tmp_path / "golden.golf").tensors, tensors)


def test_a_fresh_process_loads_the_file_alone(small_file: Path) -> None:
    script = (
        "import sys; from components.artifact import *; from components.artifact_report import weights_sha256;"
        "a = read_artifact(sys.argv[1]); assert len(load_state(a.tensors)) == 8; print(weights_sha256(a.tensors))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, small_file], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == weights_sha256(small_tensors())


# From and to network weights


def test_states_are_stored_by_the_export_rules_and_loaded_as_float32() -> None:
    state = {"blocks.0.mlp.fc.weight": torch.randn(300, 256), "smear.gate": torch.randn(256)}
    tensors = store_state(state, num_layers=1)
    assert [tensor.storage for tensor in tensors.values()] == ["int5", "float16"]
    loaded = load_state(tensors)
    assert all(weight.dtype == torch.float32 for weight in loaded.values())
    assert torch.equal(
        loaded["blocks.0.mlp.fc.weight"], quantize(state["blocks.0.mlp.fc.weight"], Storage.INT5).dequantize()
    )
    kept = {"blocks.0.attn.c_k.weight": torch.randn(300, 256)}
    assert store_state(kept, 1)["blocks.0.attn.c_k.weight"].storage is Storage.FLOAT16
    assert store_state(kept, 1, keep_last_k_fp16=0)["blocks.0.attn.c_k.weight"].storage is Storage.INT6


@pytest.mark.parametrize("shape", [(5,), (300, 256)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e38])
def test_weights_that_are_not_finite_are_not_exported(shape: tuple[int, ...], value: float) -> None:
    weight = torch.ones(shape)
    weight.view(-1)[-1] = value
    with pytest.raises(
        UserError, match=r"^blocks\.0\.mlp\.fc\.weight holds values that are not finite or too large for"
    ):
        store_state({"blocks.0.mlp.fc.weight": weight}, num_layers=1)


# What a user can mend


def expect_error(path: Path, pattern: str) -> None:
    with pytest.raises(UserError) as caught:
        read_artifact(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert re.search(pattern, message), message
    assert message.count(". ") == 0
    assert message.endswith(".")


@pytest.mark.parametrize("content", [b"", b"something else", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\x28\xb5\x2f\xfd"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "foreign").write_bytes(content)
    expect_error(tmp_path / "foreign", "is not an artifact; give a file that fit exported")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    expect_error(tmp_path / "missing.golf", r"cannot be read \(No such file or directory\)")
    expect_error(tmp_path, r"cannot be read \(Is a directory\)")


def test_an_enormous_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "enormous").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    expect_error(tmp_path / "enormous", "has over 192,000,000 bytes, so it is not an artifact")


def test_every_truncation_is_called_one(small_file: Path, tmp_path: Path) -> None:
    data = small_file.read_bytes()
    for length in [*range(1, 60), len(data) // 2, len(data) - 1]:
        (tmp_path / "cut.golf").write_bytes(data[:length])
        expect_error(tmp_path / "cut.golf", f"is truncated to {length:,}")


def test_an_appended_byte_is_damage(small_file: Path, tmp_path: Path) -> None:
    (tmp_path / "long.golf").write_bytes(small_file.read_bytes() + b"x")
    expect_error(tmp_path / "long.golf", "is damaged: its first bytes are wrong")


@pytest.mark.parametrize("position", [12, 16, 30, 44, 300, -1])
def test_a_flipped_byte_is_damage(small_file: Path, tmp_path: Path, position: int) -> None:
    data = bytearray(small_file.read_bytes())
    data[position] ^= 1
    (tmp_path / "flipped.golf").write_bytes(data)
    expect_error(tmp_path / "flipped.golf", "is damaged: its checksum does not match; copy or export it again")


def test_a_newer_version_is_named(small_file: Path, tmp_path: Path) -> None:
    (tmp_path / "newer.golf").write_bytes(sealed(*parts_of(small_file.read_bytes()), version=2))
    expect_error(tmp_path / "newer.golf", "has version 2 of the artifact format and this program reads version 1")
    (tmp_path / "zero.golf").write_bytes(sealed(*parts_of(small_file.read_bytes()), version=0))
    expect_error(tmp_path / "zero.golf", "is damaged: its first bytes are wrong")


def test_the_test_seals_as_the_writer_does(small_file: Path) -> None:
    assert sealed(*parts_of(small_file.read_bytes())) == small_file.read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda header: [], "its header is not as the format says"),
        (lambda header: {"settings": {}}, "its header is not as the format says"),
        (lambda header: header | {"settings": []}, "its header is not as the format says"),
        (lambda header: header | {"settings": {"a": None}}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "int4", [1, 1]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "int5", [1]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "int5", [1, -1]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "int5", [1, 1.0]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "int5", [True, 1]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "float16", [1] * 9]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [[1, "float16", [1]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "float16", [1]]] * 2}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "float16", [10**12]]]}, "its header is not as the format says"),
        (lambda header: header | {"tensors": [["a", "int8", [8000, 8001]]]}, "its header lists more than 64,000,000 v"),
        (lambda header: header | {"tensors": [["a", "float16", [0, 6 * 10**7]], ["b", "float16", [0, 6 * 10**7]]]},
         "its header lists more than 64,000,000 values"),
        (lambda header: header | {"tensors": header["tensors"][1:]}, "its model says that it has an impossible size"),
        (lambda header: header | {"tensors": [[n, s.replace("5", "6"), d] for n, s, d in header["tensors"]]}, "not de"),
        (lambda header: header | {"settings": {"a": "x" * (1 << 20)}}, "header says that it has an impossible size"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_damage(
    small_file: Path, tmp_path: Path, change: Callable[[dict], object], reason: str
) -> None:
    header, model, values = parts_of(small_file.read_bytes())
    changed = change(json.loads(zstandard.decompress(header)))
    (tmp_path / "lies.golf").write_bytes(sealed(zstandard.compress(json.dumps(changed).encode()), model, values))
    expect_error(tmp_path / "lies.golf", f"is damaged: .*{reason}")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda header, model, values: (b"{}", model, values), "its header does not decompress"),
        (lambda header, model, values: (zstandard.compress(b"["), model, values), "its header is not as the format"),
        (lambda header, model, values: (zstandard.compress(b"[" * 10**6), model, values), "its header is not as the f"),
        (lambda header, model, values: (header + header, model, values), "its header does not decompress"),
        (lambda header, model, values: (header, model[:-1], values), "its model does not decompress"),
        (lambda header, model, values: (header, b"", values), "its model does not decompress"),
        (lambda header, model, values: (header, zstandard.compress(bytes(10**9)), values), "its model says that it"),
        (lambda header, model, values: (header, model, values[:-2]), "its values do not decode"),
        (lambda header, model, values: (header, model, values + bytes(2)), "its values do not decode"),
        (lambda header, model, values: (header, model, b""), "its values do not decode"),
    ],
)  # fmt: skip
def test_parts_that_contradict_each_other_are_damage(
    small_file: Path, tmp_path: Path, spoil: Callable[[bytes, bytes, bytes], tuple[bytes, bytes, bytes]], reason: str
) -> None:
    (tmp_path / "spoilt.golf").write_bytes(sealed(*spoil(*parts_of(small_file.read_bytes()))))
    expect_error(tmp_path / "spoilt.golf", f"is damaged: {reason}")


@pytest.mark.parametrize(
    "tensor",
    [
        StoredTensor(Storage.INT5, torch.full((2, 3), 16, dtype=torch.int8), torch.ones(2).half()),
        StoredTensor(Storage.INT6, torch.full((2, 3), -33, dtype=torch.int8), torch.ones(2).half()),
        StoredTensor(Storage.INT8, torch.full((2, 3), -128, dtype=torch.int8), torch.ones(2).half()),
        StoredTensor(Storage.INT8, torch.ones(2, 3, dtype=torch.int8), torch.full((2,), torch.inf).half()),
        StoredTensor(Storage.FLOAT16, torch.full((2,), torch.nan).half()),
    ],
)
def test_values_that_no_export_writes_are_damage(tmp_path: Path, tensor: StoredTensor) -> None:
    write_artifact(tmp_path / "unsound.golf", {}, {"w": tensor})
    expect_error(tmp_path / "unsound.golf", "is damaged: it holds values that no export writes")


def test_too_many_values_are_refused_when_writing(tmp_path: Path) -> None:
    huge = StoredTensor(Storage.FLOAT16, torch.zeros(1, dtype=torch.float16).expand(MAX_ELEMENTS + 1))
    with pytest.raises(UserError, match=r"^The model has 64,000,001 values and an artifact holds 64,000,000 at most"):
        write_artifact(tmp_path / "huge.golf", {}, {"w": huge})


def test_missing_zstandard_is_named_and_nothing_falls_back(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def no_zstandard(name: str, *args: object, **kwargs: object) -> object:
        if name == "zstandard":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_zstandard)
    for use in [
        require_zstandard,
        lambda: read_artifact(small_file),
        lambda: write_artifact(tmp_path / "none.golf", {}, {}),
    ]:
        with pytest.raises(
            UserError, match=r"need the package zstandard, which is not installed; run `pip install zst"
        ):
            use()
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.golf"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"model\.golf cannot be written \(No space left on device\); make room or choose"
    ):
        write_artifact(path, SETTINGS, small_tensors())
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.golf"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write_artifact(tmp_path / "nowhere" / "model.golf", {}, {})


# Fuzzing


@contextmanager
def at_most_a_gibibyte_more() -> Iterator[None]:
    """Let an allocation beyond the memory in use and one gibibyte raise MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_memory_limit_of_these_tests_holds() -> None:
    with at_most_a_gibibyte_more(), pytest.raises(MemoryError):
        bytearray(3 << 29)


def fuzz(data: bytes, num_mutations: int, seed: int) -> dict[str, int]:
    """Read `num_mutations` mutations of a sound file; each must fail with a UserError or leave what it says intact.

    A quarter have their lengths and checksum put right again, so that they reach the parser; those may hold other
    weights. Also asserts that none takes a second, nor a gibibyte.

    Returns:
        How many ended in which way.
    """
    generator = np.random.default_rng(seed)
    path = Path("fuzzed.golf")
    sound = parse_artifact(data, path)
    outcomes = {"refused": 0, "unchanged": 0, "resealed, refused": 0, "resealed, read": 0}
    for index in range(num_mutations):
        reseal = index % 4 == 0
        if reseal:
            parts = list(parts_of(data))
            chosen = int(generator.integers(0, 3))
            if chosen < 2 and generator.integers(0, 2):
                parts[chosen] = zstandard.compress(mutate(zstandard.decompress(parts[chosen]), generator))
            else:
                parts[chosen] = mutate(parts[chosen], generator)
            mutated = sealed(*parts)
        else:
            mutated = mutate(data, generator)
        started = time.perf_counter()
        try:
            with at_most_a_gibibyte_more():
                artifact = parse_artifact(mutated, path)
        except UserError:
            outcomes["resealed, refused" if reseal else "refused"] += 1
        else:
            if not reseal:
                assert mutated == data
                assert_same(artifact.tensors, sound.tensors)
            outcomes["resealed, read" if reseal else "unchanged"] += 1
        assert time.perf_counter() - started < 1
    return outcomes


def mutate(data: bytes, generator: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut, repeat or swap some of the bytes, or write an extreme number over them."""
    mutated = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        start = int(generator.integers(0, len(mutated) + 1))
        # Half of all mutations strike the first bytes, where the lengths stand.
        start = min(start, int(generator.integers(0, 64))) if generator.integers(0, 2) else start
        stop = start + int(generator.integers(1, 16))
        kind = int(generator.integers(0, 6))
        if kind == 0 and start < len(mutated):
            mutated[start] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1:
            mutated[start:stop] = generator.bytes(stop - start)
        elif kind == 2:
            del mutated[start : stop if generator.integers(0, 2) else None]
        elif kind == 3:
            mutated[start:start] = mutated[start:stop]
        elif kind == 4:
            mutated[start : start + 4] = [b"\xff" * 4, bytes(4), b"\x00\x00\x00\x80"][int(generator.integers(0, 3))]
        else:
            mutated += bytes(int(generator.integers(1, 100)))
    return bytes(mutated)


def test_the_largest_model_that_a_file_may_claim_fits_in_a_gibibyte(tmp_path: Path) -> None:
    zeros = StoredTensor(Storage.FLOAT16, torch.zeros(8000, 8000, dtype=torch.float16))
    assert write_artifact(tmp_path / "zeros.golf", {}, {"w": zeros}) < 20_000
    with at_most_a_gibibyte_more():
        assert read_artifact(tmp_path / "zeros.golf").tensors["w"].values.shape == (8000, 8000)


def test_mutated_files_end_in_a_clear_error(small_file: Path) -> None:
    outcomes = fuzz(small_file.read_bytes(), num_mutations=4000, seed=0)
    assert outcomes["refused"] > 2900
    assert outcomes["resealed, refused"] > 900


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(list(Storage)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["settings", "tensors", "a"]), inner),
    max_leaves=8,
)
LISTED = st.lists(
    st.tuples(st.text(max_size=2), st.sampled_from(list(Storage)), st.lists(st.integers(-1, 10**9), max_size=3)),
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(header=JSON | st.fixed_dictionaries({"settings": JSON, "tensors": JSON | LISTED}))
def test_any_header_is_an_artifact_or_a_clear_error(small_file: Path, header: object) -> None:
    _, model, values = parts_of(small_file.read_bytes())
    data = sealed(zstandard.compress(json.dumps(header).encode()), model, values)
    with pytest.raises(UserError, match=r"^f\.golf is damaged"):
        parse_artifact(data, Path("f.golf"))


# The description


def test_the_description_shows_settings_tensors_totals_and_checksums(small_file: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "components.artifact", small_file], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
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


def test_a_file_over_the_cap_is_said_to_be(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.artifact_report.MAX_BYTES", 100)
    assert f"{small_file.stat().st_size - 100:,} over the cap of 100" in describe(small_file)


def test_describing_what_is_no_artifact_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"text")
    command = [sys.executable, "-m", "components.artifact", tmp_path / "foreign"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"error: {tmp_path / 'foreign'} is not an artifact; give a file that fit exported.\n"


def test_the_weights_checksum_sees_every_part() -> None:
    tensors = small_tensors()
    checksums = {weights_sha256(tensors), weights_sha256(small_tensors(seed=1))}
    five = tensors["five"]
    checksums.add(weights_sha256(tensors | {"five": StoredTensor(Storage.INT6, five.values, five.scales)}))
    checksums.add(weights_sha256(tensors | {"five": StoredTensor(Storage.INT5, five.values, five.scales * 2)}))
    checksums.add(weights_sha256({name + "x": tensor for name, tensor in tensors.items()}))
    assert len(checksums) == 5


def test_the_written_down_format_is_the_one_in_use() -> None:
    assert "``89 47 4F 4C 46 0D 0A 1A``" in artifact_module.__doc__
    assert bytes.fromhex("89474F4C460D0A1A") == artifact_module.MAGIC
