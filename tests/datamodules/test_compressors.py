"""What compressors take for a text, and the text of a split."""

import lzma
import random
from pathlib import Path

import pytest
import zstandard

from components.tokenizer import load_tokenizer
from datamodules.compressors import bits_per_byte, read_text
from datamodules.prepare import prepare
from datamodules.shards import find_shards, open_shard

DOCUMENTS = [f"Document {i} of a few, caf\u00e9. Its square: {i * i}.".encode() for i in range(40)]
KNOWN, NEW = random.Random(1).randbytes(20_000), random.Random(2).randbytes(2_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressors") / "data"
    prepare(DOCUMENTS, folder, source="test", val_docs=10, tokenizer=320, num_workers=1)
    return folder


def test_reads_the_text_of_a_split(folder: Path) -> None:
    assert read_text(folder, "val") == b"".join(DOCUMENTS[:10])
    assert read_text(folder, "train") == b"".join(DOCUMENTS[10:])


def test_reads_the_first_ids_alone(folder: Path) -> None:
    [shard] = find_shards(folder, "val")
    bos = load_tokenizer(folder / "tokenizer.model").bos_id()
    first = open_shard(shard).tolist().index(bos, 1)
    assert read_text(folder, "val", first) == DOCUMENTS[0]


def test_text_that_is_new_and_random_costs_all_of_its_bits() -> None:
    assert all(8 <= bits < 8.5 for bits in bits_per_byte(NEW, KNOWN).values())


def test_text_that_is_known_costs_nearly_nothing_to_those_that_know_it() -> None:
    found = bits_per_byte(KNOWN[3_000:8_000], KNOWN)
    for name, bits in found.items():
        assert (bits < 0.5) if "knows" in name else (bits >= 8), name


def test_the_settings_are_the_strongest() -> None:
    text = b"".join(DOCUMENTS)
    found = bits_per_byte(text, KNOWN)
    assert found["xz -9e"] == 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    strongest = zstandard.ZstdCompressor(level=zstandard.MAX_COMPRESSION_LEVEL)
    assert found["zstd -22"] == 8 * len(strongest.compress(text)) / len(text)
