"""One text in every vocabulary that the comparison needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from components.tokenizer import load_tokenizer
from datamodules.corpus import build_corpus
from datamodules.manifest import TOKENIZER_NAME, Manifest
from datamodules.prepare import prepare
from datamodules.shards import Split, find_shards, open_shard

CACHE = Path(".cache/ladder")
DEMO = Path(".cache/demo")
VAL_BYTES = 40_000
"""Text that is scored."""


class Text:
    """Documents of a data folder, and shards of them in any vocabulary.

    A vocabulary whose tokenizer is beside the data uses that one. Any other is trained on the training documents.

    Args:
        folder: Data in the published export's layout, SP1024 at least; None for the demo's corpus.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is None:
            build_corpus(DEMO)
        self.shards = DEMO if folder is None else folder / "datasets" / "fineweb10B_sp1024"
        self.tokenizers = {1024: DEMO / TOKENIZER_NAME}
        if folder is not None:
            found = (folder / "tokenizers").glob("fineweb_*_bpe.model")
            self.tokenizers = {int(path.name.split("_")[1]): path for path in found}

    def prepared(self, vocab_size: int) -> Path:
        """A folder with the documents' shards and tokenizer, made unless it is there."""
        splits = {split: list(self._documents(split)) for split in ("val", "train")}
        val = [
            text
            for text, total in zip(splits["val"], np.cumsum(list(map(len, splits["val"]))), strict=True)
            if total <= VAL_BYTES
        ]
        digest = hashlib.sha256(b"\0".join((*val, *splits["train"]))).hexdigest()[:12]
        folder = CACHE / f"{digest}-{vocab_size}"
        if Manifest.read(folder) is None:
            prepare(
                chain(val, splits["train"]),
                folder,
                source=f"documents of {self.shards}",
                val_docs=len(val),
                tokenizer=self.tokenizers.get(vocab_size, vocab_size),
                num_workers=1,
            )
        return folder

    def _documents(self, split: Split) -> Iterator[bytes]:
        """A split's documents, but for the last, which may be cut."""
        tokenizer = load_tokenizer(self.tokenizers[1024], 1024)
        ids = np.concatenate([open_shard(path) for path in find_shards(self.shards, split)])
        starts = np.flatnonzero(ids == tokenizer.bos_id())
        for start, end in pairwise(starts):
            yield tokenizer.decode(ids[start + 1 : end].tolist()).encode()
