"""Download a published FineWeb export from the Hugging Face hub: `python -m datamodules.download`.

Files are downloaded to a temporary folder and checked there. They are moved into place once all are complete, so a
file under its final name can be trusted. Complete files from an interrupted attempt are not downloaded again.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from huggingface_hub.utils import logging as hub_logging

from components.command import run_command
from components.errors import UserError
from components.tokenizer import load_tokenizer
from datamodules.hub import Hub
from datamodules.manifest import fit_settings
from datamodules.shards import Split, TokenIds, open_shard, shard_name

REPOSITORIES = {
    "sp1024": "willdepueoai/parameter-golf",
    "sp4096": "kevclark/parameter-golf",
    "sp8192": "kevclark/parameter-golf",
}
"""The repository where each variant is known to be published."""
ROOT = PurePosixPath("datasets")
"""An export's folder, both in its repository and under the output folder."""


@dataclass(frozen=True)
class PublishedVariant:
    """One variant of a published export, as the export's manifest describes it."""

    dataset: str
    tokenizer_path: str
    num_shards: dict[Split, int]
    counts: dict[Split, dict[str, int]]
    """The manifest's "tokens" and "docs" for each whole split, if given."""

    @classmethod
    def of(cls, manifest: Any, variant: str) -> "PublishedVariant":
        """Find a variant in the export's manifest.

        Raises:
            UserError: the variant does not exist, or the manifest does not describe it.
        """
        dataset = f"fineweb10B_{variant}"
        try:
            entries = {entry["name"]: entry for entry in manifest["datasets"]}
            tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
            if dataset not in entries:
                known = ", ".join(sorted(name.removeprefix("fineweb10B_") for name in entries))
                raise UserError(
                    f"the export has no variant {variant}: choose --variant from {known}, or give another --repository"
                )
            stats = entries[dataset]["stats"]
            splits: tuple[Split, ...] = ("train", "val")
            return cls(
                dataset=dataset,
                tokenizer_path=tokenizers[entries[dataset]["tokenizer_name"]]["model_path"],
                num_shards={split: int(stats[f"files_{split}"]) for split in splits},
                counts={
                    split: {
                        what: int(stats[f"{what}_{split}"]) for what in ("tokens", "docs") if f"{what}_{split}" in stats
                    }
                    for split in splits
                },
            )
        except (LookupError, TypeError) as error:
            raise UserError(
                f"the export's manifest does not describe the shards and the SentencePiece model of variant {variant} "
                f"({error!r}): choose another --variant or --repository"
            ) from error


def download(out: Path, variant: str, num_train_shards: int, repository: str | None = None) -> str:
    """Download a variant's full validation split, first train shards and tokenizer.

    Args:
        out: gets `datasets/fineweb10B_<variant>/` and `tokenizers/`. Complete shards already there are kept.
        variant: the tokenizer's kind and vocabulary size, such as sp1024.
        num_train_shards: number of train shards, 100,000,000 tokens each.
        repository: the dataset on the hub, as owner/name; None uses the variant's entry in `REPOSITORIES`.

    Returns:
        The settings to pass to `fit`.

    Raises:
        UserError: no repository is known for the variant, or a file is missing, stays damaged or cannot be downloaded.
            Even then, every file under its final name is complete.
    """
    repository = repository or REPOSITORIES.get(variant)
    if repository is None:
        raise UserError(
            f"no repository is known for variant {variant}: choose --variant from {', '.join(REPOSITORIES)}, "
            "or give the --repository that holds it"
        )
    hub = Hub(repository, out / ".downloading")
    published = PublishedVariant.of(json.loads(hub.fetch(ROOT / "manifest.json", _check_json).read_bytes()), variant)
    if not 1 <= num_train_shards <= published.num_shards["train"]:
        raise UserError(
            f"{num_train_shards} train shards of {variant} were asked for: "
            f"choose --train-shards from 1 to {published.num_shards['train']}"
        )
    fetched_tokenizer = hub.fetch(ROOT / published.tokenizer_path, load_tokenizer)
    tokenizer = load_tokenizer(fetched_tokenizer)

    num_shards: dict[Split, int] = {"val": published.num_shards["val"], "train": num_train_shards}
    folder = out / "datasets" / published.dataset
    paths = {
        split: [folder / shard_name(split, index) for index in range(number)] for split, number in num_shards.items()
    }
    wanted = [path for path in chain(*paths.values()) if not _is_complete(path, len(tokenizer))]
    fetched = hub.fetch_all(
        [ROOT / "datasets" / published.dataset / path.name for path in wanted],
        lambda path: _open_checked(path, len(tokenizer)),
    )
    now_at = dict(zip(wanted, fetched, strict=True))
    for split, number in num_shards.items():
        if number == published.num_shards[split]:
            _check_counts(
                split, [now_at.get(path, path) for path in paths[split]], published.counts[split], tokenizer.bos_id()
            )
    tokenizer_path = out / "tokenizers" / fetched_tokenizer.name
    for target, source in {**now_at, tokenizer_path: fetched_tokenizer}.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    shutil.rmtree(hub.folder)
    return fit_settings(folder, tokenizer_path)


def _check_json(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: download it again") from error


def _open_checked(path: Path, vocab_size: int) -> TokenIds:
    ids = open_shard(path)
    if (largest := int(ids.max())) >= vocab_size:
        raise UserError(f"shard {path} has token id {largest} in a vocabulary of {vocab_size}: download it again")
    return ids


def _is_complete(path: Path, vocab_size: int) -> bool:
    """Whether an intact shard already exists; a damaged one is deleted."""
    try:
        _open_checked(path, vocab_size)
    except UserError:
        path.unlink(missing_ok=True)
        return False
    return True


def _check_counts(split: Split, paths: list[Path], expected: dict[str, int], bos_id: int) -> None:
    shards = [open_shard(path) for path in paths]
    found = {
        "tokens": sum(len(ids) for ids in shards),
        "docs": sum(int(np.count_nonzero(ids == bos_id)) for ids in shards),
    }
    for what, number in expected.items():
        if found[what] != number:
            for path in paths:
                path.unlink()
            raise UserError(
                f"the {split} shards had {found[what]} {what} where the export's manifest says {number}, and were "
                "deleted: run the command again, and if that does not help, tell the export's publisher"
            )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.download", description="Download a published FineWeb export and check it."
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder to fill (default: %(default)s)")
    parser.add_argument(
        "--variant",
        default="sp1024",
        help=f"kind and size of the vocabulary, such as {', '.join(REPOSITORIES)} (default: %(default)s)",
    )
    known = ", ".join(f"{variant} {repository}" for variant, repository in REPOSITORIES.items())
    parser.add_argument(
        "--repository", metavar="OWNER/NAME", help=f"dataset on the hub (default: by the variant, {known})"
    )
    parser.add_argument(
        "--train-shards",
        type=int,
        default=80,
        help="number of train shards, of 100,000,000 tokens and 200 MB each (default: %(default)s)",
    )
    args = parser.parse_args()
    hub_logging.set_verbosity_error()
    print(download(args.out, args.variant, args.train_shards, args.repository))


if __name__ == "__main__":
    run_command(main)
