"""The artifact: lossless, small, the same bytes always, and safe against whatever stands in a file."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from components.artifact import (
    MAX_ELEMENTS,
    MAX_FILE_BYTES,
    parse_artifact,
    read_artifact,
    write_artifact,
)
from components.errors import UserError
from components.quantization import StoredTensor, quantize
from components.storage import RECIPE, Storage, StorageRule, keep_last_keys
from tests.components.support import (
    SETTINGS,
    assert_same,
    at_most_a_gibibyte_more,
    mutate,
    parts_of,
    sealed,
    small_tensors,
)
from tests.support import GOLDEN, needs_golden, recipe_stored

PUBLIC_GOLDEN_BYTES = 2_471_498


# Lossless, small, deterministic


def test_reading_gives_back_what_was_written(small_file: Path) -> None:
    artifact = read_artifact(small_file)
    assert artifact.settings == SETTINGS
    assert [type(value) for value in artifact.settings.values()] == [int, str, float, bool]
    assert_same(artifact.tensors, small_tensors())
    assert small_file.stat().st_size == write_artifact(small_file, SETTINGS, small_tensors())


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_float16_and_any_code_survive(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
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


def test_an_artifact_may_hold_nothing(tmp_path: Path) -> None:
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


@needs_golden
def test_the_golden_weights_take_nine_tenths_of_the_public_file(tmp_path: Path) -> None:
    tensors = recipe_stored(load_file(GOLDEN / "trained.safetensors"))
    config = json.loads((GOLDEN / "config.json").read_text())
    plain = {name: value for name, value in config.items() if isinstance(value, bool | int | float | str)}
    size = write_artifact(tmp_path / "golden.golf", plain, tensors)
    assert size <= 0.90 * PUBLIC_GOLDEN_BYTES
    assert_same(read_artifact(tmp_path / "golden.golf").tensors, tensors)


# The storage rules


def test_storage_rules_survive(tmp_path: Path) -> None:
    rules = (*keep_last_keys(2), StorageRule("*", "int8", at_most=7, qat=True), *RECIPE)
    write_artifact(tmp_path / "rules.golf", {}, {}, rules)
    assert read_artifact(tmp_path / "rules.golf").rules == rules


def test_a_file_from_before_the_rules_is_read_without_any(small_file: Path, tmp_path: Path) -> None:
    _, model, values = parts_of(small_file.read_bytes())
    listed = [[name, str(t.storage), list(t.values.shape)] for name, t in sorted(small_tensors().items())]
    header = json.dumps({"settings": SETTINGS, "tensors": listed}).encode()
    (tmp_path / "older.golf").write_bytes(sealed(zstandard.compress(header), model, values))
    artifact = read_artifact(tmp_path / "older.golf")
    assert artifact.rules == ()
    assert artifact.settings == SETTINGS
    assert_same(artifact.tensors, small_tensors())


SOUND_RULE = {"names": "*", "storage": "int8", "at_most": 3, "qat": True}


@pytest.mark.parametrize(
    "listed",
    [
        None,
        5,
        {"*": "int8"},
        ["*"],
        [["*", "int8", 0, False]],
        [{}],
        [{"names": "*", "storage": "int8", "qat": True}],
        [SOUND_RULE | {"priority": 1}],
        [SOUND_RULE | {"names": 5}],
        [SOUND_RULE | {"names": ["*"]}],
        [SOUND_RULE | {"names": ""}],
        [SOUND_RULE | {"names": "*" * 201}],
        [SOUND_RULE | {"storage": "int4"}],
        [SOUND_RULE | {"storage": ["int8"]}],
        [SOUND_RULE | {"storage": None}],
        [SOUND_RULE | {"at_most": -1}],
        [SOUND_RULE | {"at_most": 3.0}],
        [SOUND_RULE | {"at_most": "3"}],
        [SOUND_RULE | {"at_most": True}],
        [SOUND_RULE | {"qat": 1}],
        [SOUND_RULE | {"qat": "false"}],
        [SOUND_RULE | {"storage": "float16"}],
        [SOUND_RULE, SOUND_RULE | {"qat": None}],
    ],
    ids=str,
)
def test_storage_rules_of_another_form_are_damage(small_file: Path, tmp_path: Path, listed: object) -> None:
    header, model, values = parts_of(small_file.read_bytes())
    path = tmp_path / "rules.golf"

    def write(rules: object) -> None:
        changed = json.dumps(json.loads(zstandard.decompress(header)) | {"storage": rules}).encode()
        path.write_bytes(sealed(zstandard.compress(changed), model, values))

    write([SOUND_RULE])
    assert read_artifact(path).rules == (StorageRule("*", "int8", 3, True),)
    write(listed)
    expect_error(path, "is damaged: its header is not as the format says")


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


def test_an_enormous_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "enormous").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    expect_error(tmp_path / "enormous", "has over 192,000,000 bytes, so it is not a model")


def test_every_truncation_is_named(small_file: Path, tmp_path: Path) -> None:
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
    (tmp_path / "newer.golf").write_bytes(sealed(*parts_of(small_file.read_bytes()), version=3))
    expect_error(tmp_path / "newer.golf", "has version 3 of the artifact format and this program reads version")
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
        (lambda header: header | {"settings": {"a": [1]}}, "its header is not as the format says"),
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
    (tmp_path / "spoiled.golf").write_bytes(sealed(*spoil(*parts_of(small_file.read_bytes()))))
    expect_error(tmp_path / "spoiled.golf", f"is damaged: {reason}")


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


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write_artifact(tmp_path / "nowhere" / "model.golf", {}, {})


# Fuzzing


def test_the_memory_limit_of_these_tests_holds() -> None:
    with at_most_a_gibibyte_more(), pytest.raises(MemoryError):
        bytearray(3 << 29)


def fuzz(data: bytes, num_mutations: int, seed: int) -> dict[str, int]:
    """Read `num_mutations` mutations of a sound file; each must fail with a UserError or leave the model as it was.

    A quarter have their lengths and checksum put right again, so that they reach the parser; those may hold other
    weights. None may take a gibibyte.

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
    return outcomes


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
@given(header=JSON | st.fixed_dictionaries({"settings": JSON, "tensors": JSON | LISTED}, optional={"storage": JSON}))
def test_any_header_is_an_artifact_or_a_clear_error(small_file: Path, header: object) -> None:
    _, model, values = parts_of(small_file.read_bytes())
    data = sealed(zstandard.compress(json.dumps(header).encode()), model, values)
    with pytest.raises(UserError, match=r"^f\.golf is damaged"):
        parse_artifact(data, Path("f.golf"))
