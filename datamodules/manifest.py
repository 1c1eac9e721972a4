"""A prepared data folder's manifest: `manifest.json`, next to its shards and tokenizer."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from components.files import written_beside
from datamodules.shards import Split

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.model"


@dataclass(frozen=True)
class FileRecord:
    """One file in the folder."""

    name: str
    num_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Record a file's current state."""
        with path.open("rb") as file:
            return cls(path.name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class SplitRecord:
    """One split: its shards in stream order and what they encode."""

    num_documents: int
    num_tokens: int
    text_bytes: int
    """UTF-8 bytes of the documents before the tokenizer's normalization."""
    documents_sha256: str
    """SHA-256 of the concatenated SHA-256 digests of the documents."""
    shards: list[FileRecord]


@dataclass(frozen=True)
class Manifest:
    """A prepared folder. It is written last, so a folder that has one is complete."""

    source: str
    """Where the documents came from."""
    vocab_size: int
    tokenizer: FileRecord
    splits: dict[Split, SplitRecord]
    left_out_of_train: int
    """Training documents skipped because they are also in the validation split."""

    def write(self, folder: Path) -> None:
        """Write `manifest.json`."""
        with written_beside(folder / MANIFEST_NAME) as scratch:
            scratch.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Read `manifest.json`; None if it is missing or was not written by this program."""
        try:
            fields = json.loads((folder / MANIFEST_NAME).read_text())
            fields["tokenizer"] = FileRecord(**fields["tokenizer"])
            for split, record in fields["splits"].items():
                record["shards"] = [FileRecord(**shard) for shard in record["shards"]]
                fields["splits"][split] = SplitRecord(**record)
            return cls(**fields)
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def files(self) -> list[FileRecord]:
        """Every file in the folder except the manifest."""
        return [self.tokenizer, *(shard for record in self.splits.values() for shard in record.shards)]

    def is_damaged(self, folder: Path) -> bool:
        """Whether a file is missing or differs from what was written."""
        try:
            return any(FileRecord.of(folder / file.name) != file for file in self.files())
        except OSError:
            return True

    def report(self, folder: Path) -> str:
        """Summarize the folder and the settings to pass to `fit` in a few lines."""
        lines = [
            f"{split}: {record.num_documents:,} documents, {record.num_tokens:,} tokens, shards: {len(record.shards)}, "
            f"{record.text_bytes:,} bytes of text"
            for split, record in self.splits.items()
        ]
        if self.left_out_of_train:
            lines.append(f"left out of train, because val has them too: {self.left_out_of_train:,} documents")
        return "\n".join([*lines, fit_settings(folder, folder / self.tokenizer.name)])


def fit_settings(folder: Path, tokenizer_path: Path) -> str:
    """The settings that make `fit` read a data folder."""
    return f"give to fit: --data.path {folder} --data.tokenizer_path {tokenizer_path}"
