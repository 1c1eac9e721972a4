"""Files of the format's first version, made by the program of that time, and the int7 that its second one adds."""

import base64
import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
import zstandard

from components.artifact import parse_artifact, read_artifact, write_artifact
from components.artifact_report import describe
from components.errors import UserError
from components.public_artifact import write_public_artifact
from components.quantization import StoredTensor, quantize
from components.storage import Storage, StorageRule

# What write_artifact gave for `first_tensors`, the settings and the rule below before there was an int7.
VERSION_1 = base64.b85decode(
    "iAPUNMhyxY0RR91m;e9(-~a#s1Ofm600000!-aZtAsOY(Gv<(D?x%icD77#BAkKXR0CGtj7;tY6=Cv<jG7Vy3XsgtJNKuIk(xm!7gjZ_~AW~py1"
    "nr`;Jij=uL6RtTddpe1R^-6)N4^{8?HSW^6d7(m+jXPidpqd)>hblwkAqJ@-yEN$-7ThH#znFDc@6rel}9~SidwJi>sxwe;Okz#6$$`i47kI9&H"
    "$te1+D?$$~h~bf>UL{`GYb8D77#Bpick=0IUN562l1+&}R(*0I<{%3EwHGa4qR;O#$cV90bCtQ|#_)E4uh`@>5EUSpprP0Gkx+p8-%$$~DHV@B"
    "s<RhaMG@UOei1rwQqvzs<!C&4zuxJb%SIT!GQ_q}UT@5a73q=dTbjX;*9R3~tKQ!1q_|iQ*0DC-eXS7*<sQ3Gm7W@LnfBgZZ8G4cf)$BcW;!P"
    "H|~Q6%XA308j-51q1{I2nY=U5#aE4>st-s40s^Y2kO3>!c8xg-VEJ$pzpGu92AmPHv6Hzl@Ef0eLqc<GA$m6m<J62al3*E1@vaVQE8iFgrQ~(m"
    "ljU}=xePhO`nWplUc&<4kS}2sf;lqafP26JwC`|0CzVm+#fbop2*N`p7EI`GJ0x1KLY|NJ}u00wKozyhB6lv9w^gm6Ei@c"
)
SETTINGS = {"width": 3, "tied": True}
RULE = StorageRule("six", "int6", qat=True)


def codes(smallest: int, largest: int, rows: int, cols: int) -> torch.Tensor:
    values = torch.arange(rows * cols) * 7 % (largest - smallest + 1) + smallest
    return values.view(rows, cols).to(torch.int8)


def first_tensors() -> dict[str, StoredTensor]:
    return {
        "five": StoredTensor(Storage.INT5, codes(-16, 15, 4, 9), torch.tensor([0.5, 0.25, 2, 3]).half()),
        "six": StoredTensor(Storage.INT6, codes(-32, 31, 2, 40), torch.tensor([0.125, 65504.0]).half()),
        "eight": StoredTensor(Storage.INT8, codes(-127, 127, 3, 5), torch.tensor([1.0, 2, 3]).half()),
        "half": StoredTensor(Storage.FLOAT16, torch.tensor([1.5, -2.25, 0.0]).half()),
    }


def assert_same(one: dict[str, StoredTensor], other: dict[str, StoredTensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.storage is other[name].storage
        assert torch.equal(tensor.values, other[name].values), name
        assert (tensor.scales is None) == (other[name].scales is None)
        assert tensor.scales is None or torch.equal(tensor.scales, other[name].scales), name


def with_header(data: bytes, header: dict) -> bytes:
    """The file with another header, its lengths and checksum right."""
    magic, version, header_bytes, model_bytes, _ = struct.unpack_from("<8sIIIQ", data)
    frame, rest = zstandard.compress(json.dumps(header).encode()), data[44 + header_bytes :]
    preamble = struct.pack("<8sIIIQ", magic, version, len(frame), model_bytes, 44 + len(frame) + len(rest))
    return preamble + hashlib.blake2b(preamble + frame + rest, digest_size=16).digest() + frame + rest


def header_of(data: bytes) -> dict:
    header_bytes = struct.unpack_from("<8sIIIQ", data)[2]
    return json.loads(zstandard.decompress(data[44 : 44 + header_bytes]))


def test_a_file_of_version_1_is_read_exactly() -> None:
    artifact = parse_artifact(VERSION_1, Path("first.golf"))
    assert artifact.settings == SETTINGS
    assert artifact.rules == (RULE,)
    assert_same(artifact.tensors, first_tensors())


def test_a_file_of_version_1_without_rules_is_read_exactly() -> None:
    header = header_of(VERSION_1)
    del header["storage"]
    artifact = parse_artifact(with_header(VERSION_1, header), Path("older.golf"))
    assert artifact.rules == ()
    assert_same(artifact.tensors, first_tensors())


@pytest.mark.parametrize("position", [40, 60, 200, -1])
def test_a_flipped_byte_in_version_1_is_damage(position: int) -> None:
    data = bytearray(VERSION_1)
    data[position] ^= 1
    with pytest.raises(UserError, match=r"^first\.golf is damaged: its checksum does not match"):
        parse_artifact(bytes(data), Path("first.golf"))


def test_version_1_has_no_int7() -> None:
    header = header_of(VERSION_1)
    header["tensors"] = [[name, storage.replace("int6", "int7"), shape] for name, storage, shape in header["tensors"]]
    with pytest.raises(UserError, match=r"^first\.golf is damaged: its header is not as the format says"):
        parse_artifact(with_header(VERSION_1, header), Path("first.golf"))


def test_new_files_are_of_version_2(tmp_path: Path) -> None:
    write_artifact(tmp_path / "new.golf", SETTINGS, first_tensors(), [RULE])
    data = (tmp_path / "new.golf").read_bytes()
    assert struct.unpack_from("<8sI", data)[1] == 2
    assert_same(read_artifact(tmp_path / "new.golf").tensors, first_tensors())


def test_a_version_that_never_was_is_damage(tmp_path: Path) -> None:
    write_artifact(tmp_path / "new.golf", SETTINGS, first_tensors(), [RULE])
    data = (tmp_path / "new.golf").read_bytes()
    for version, complaint in (
        (0, "is damaged: its first bytes"),
        (3, "has version 3 of the artifact format and this"),
    ):
        preamble = data[:8] + struct.pack("<I", version) + data[12:28]
        other = preamble + hashlib.blake2b(preamble + data[44:], digest_size=16).digest() + data[44:]
        with pytest.raises(UserError, match=f"^other.golf {complaint}"):
            parse_artifact(other, Path("other.golf"))


def test_int7_survives_beside_every_other_width(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        storage.value: quantize(torch.randn(150, 160, generator=generator), storage)
        for storage in (Storage.INT8, Storage.INT7, Storage.INT6, Storage.INT5, Storage.FLOAT16)
    }
    tensors["all codes"] = StoredTensor(Storage.INT7, codes(-64, 63, 2, 128), torch.ones(2).half())
    write_artifact(tmp_path / "widths.golf", {}, tensors, [StorageRule("int7", "int7", qat=True)])
    artifact = read_artifact(tmp_path / "widths.golf")
    assert_same(artifact.tensors, tensors)
    assert artifact.rules == (StorageRule("int7", "int7", qat=True),)
    assert "int7" in describe(tmp_path / "widths.golf")


def test_an_int7_code_beyond_seven_bits_is_damage(tmp_path: Path) -> None:
    wide = StoredTensor(Storage.INT7, torch.full((2, 3), 64, dtype=torch.int8), torch.ones(2).half())
    write_artifact(tmp_path / "wide.golf", {}, {"w": wide})
    with pytest.raises(UserError, match="is damaged: it holds values that no export writes"):
        read_artifact(tmp_path / "wide.golf")


def test_the_public_format_has_no_int7(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^w is stored as int7, which the public format does not know; keep the artif"):
        write_public_artifact(tmp_path / "public.ptz", {"w": quantize(torch.ones(2, 3), Storage.INT7)})
    assert not any(tmp_path.iterdir())
