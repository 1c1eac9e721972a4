"""What general compressors take for a text: the rivals of a small language model."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import zstandard

from components.tokenizer import load_tokenizer
from datamodules.manifest import TOKENIZER_NAME
from datamodules.shards import Split, find_shards, open_shard

ZSTD_LEVEL = 22
XZ_PRESET = 9 | lzma.PRESET_EXTREME


def read_text(folder: Path, split: Split, num_ids: int | None = None) -> bytes:
    """The text of a split's documents, one after another, in UTF-8.

    Args:
        folder: A data folder with its tokenizer.
        split: The split to read.
        num_ids: How many ids to read, from the first on; None for all.
    """
    tokenizer = load_tokenizer(folder / TOKENIZER_NAME)
    ids = np.concatenate([open_shard(path) for path in find_shards(folder, split)])[:num_ids]
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.bos_id()))
    return "".join(tokenizer.decode([document.tolist() for document in documents])).encode()


def bits_per_byte(text: bytes, known: bytes) -> dict[str, float]:
    """Bits that each compressor takes for a byte of a text, by the compressor's name.

    A model that is scored on the text has read its training text before, so each compressor is given that too: zstd as
    its dictionary, and xz, which has none, as the text before; its cost is what the text then adds to the file.

    Args:
        text: The text to compress.
        known: The training text.
    """
    dictionary = zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    sizes = {
        "zstd -22": len(zstandard.ZstdCompressor(ZSTD_LEVEL).compress(text)),
        "xz -9e": _xz(text),
        "zstd -22 that knows the training text": len(
            zstandard.ZstdCompressor(ZSTD_LEVEL, dict_data=dictionary).compress(text)
        ),
        "xz -9e that knows the training text": _xz(known + text) - _xz(known),
    }
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def _xz(text: bytes) -> int:
    return len(lzma.compress(text, preset=XZ_PRESET))
