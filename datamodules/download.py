"""Download the published FineWeb export from the Hugging Face hub: `python -m datamodules.download`.

Files are fetched into a folder aside and checked there. They take their names when all of them are whole, so that a
file under its name can be trusted; whole files of an interrupted attempt are not fetched again.
"""

import argparse
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import huggingface_hub
import numpy as np
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from tqdm import tqdm

from components.command import run_command
from components.errors import UserError
from datamodules.manifest import fit_settings
from datamodules.shards import Split, TokenIds, open_shard, shard_name
from datamodules.tokenizer import load_tokenizer

REPOSITORY = "willdepueoai/parameter-golf"
ROOT = PurePosixPath("datasets")
"""The export lies under this folder of the repository, and locally under the output folder."""
NUM_WORKERS = 8
NUM_ATTEMPTS = 4
FIRST_DELAY_SECONDS = 1.0
"""Before the second attempt at a file; doubled before each further one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Export:
    """One variant of the published export, as its manifest describes it."""

    dataset: str
    tokenizer_path: str
    num_shards: dict[Split, int]
    counts: dict[Split, dict[str, int]]
    """Of each whole split, what the manifest says of "tokens" and "docs"."""

    @classmethod
    def of(cls, manifest: Any, variant: str) -> "Export":
        """Find a variant in the export's manifest.

        Raises:
            UserError: there is no such variant, or the manifest does not describe it.
        """
        dataset = f"fineweb10B_{variant}"
        try:
            entries = {entry["name"]: entry for entry in manifest["datasets"]}
            tokenizers = {entry["name"]: entry for entry in manifest["tokenizers"]}
            if dataset not in entries:
                known = ", ".join(sorted(name.removeprefix("fineweb10B_") for name in entries))
                raise UserError(f"the export has no variant {variant}: choose --variant from {known}")
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
                f"the export's manifest does not give the shards and the SentencePiece model of variant {variant} "
                f"({error!r}): choose another --variant"
            ) from error


def download(out: Path, variant: str, num_train_shards: int) -> str:
    """Download a variant's whole validation split, its first train shards and its tokenizer.

    Args:
        out: gets `datasets/fineweb10B_<variant>/` and `tokenizers/`. Whole shards that are there are kept.
        variant: tokenizer family, such as sp1024.
        num_train_shards: so many train shards, of 100,000,000 tokens each.

    Returns:
        The settings to give to `fit`.

    Raises:
        UserError: a file is missing, stays damaged or cannot be fetched; nothing has a name then that is not whole.
    """
    hub = Hub(out / ".downloading")
    export = Export.of(json.loads(hub.fetch(ROOT / "manifest.json", _check_json).read_bytes()), variant)
    if not 1 <= num_train_shards <= export.num_shards["train"]:
        raise UserError(
            f"{num_train_shards} train shards of {variant} cannot be had: "
            f"choose --train-shards from 1 to {export.num_shards['train']}"
        )
    fetched_tokenizer = hub.fetch(ROOT / export.tokenizer_path, load_tokenizer)
    tokenizer = load_tokenizer(fetched_tokenizer)

    num_shards: dict[Split, int] = {"val": export.num_shards["val"], "train": num_train_shards}
    folder = out / "datasets" / export.dataset
    paths = {
        split: [folder / shard_name(split, index) for index in range(number)] for split, number in num_shards.items()
    }
    wanted = [path for path in chain(*paths.values()) if not _stands_whole(path, len(tokenizer))]
    fetched = hub.fetch_all(
        [ROOT / "datasets" / export.dataset / path.name for path in wanted],
        lambda path: _open_checked(path, len(tokenizer)),
    )
    now_at = dict(zip(wanted, fetched, strict=True))
    for split, number in num_shards.items():
        if number == export.num_shards[split]:
            _check_counts(
                split, [now_at.get(path, path) for path in paths[split]], export.counts[split], tokenizer.bos_id()
            )
    tokenizer_path = out / "tokenizers" / fetched_tokenizer.name
    for target, source in {**now_at, tokenizer_path: fetched_tokenizer}.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    shutil.rmtree(hub.folder)
    return fit_settings(folder, tokenizer_path, len(tokenizer))


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


def _stands_whole(path: Path, vocab_size: int) -> bool:
    """Whether a shard is there already; a damaged one is deleted."""
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
                f"the {split} shards have {found[what]} {what} where the export's manifest says {number}, and were "
                "deleted: run the command again, and if it stays so, report it to the export's publisher"
            )


class _DamagedFileError(Exception):
    """A file arrived that is not what it should be."""


class Hub:
    """Fetches files of the repository into a folder, where they keep their paths."""

    def __init__(self, folder: Path) -> None:
        """Fetch into `folder`."""
        self.folder = folder
        self._stop = threading.Event()

    def fetch_all(self, names: list[PurePosixPath], check: Callable[[Path], object]) -> list[Path]:
        """Fetch several files at once, with a progress bar; see `fetch`."""
        with (
            ThreadPoolExecutor(NUM_WORKERS) as executor,
            tqdm(unit="B", unit_scale=True, desc="downloading") as progress,
        ):
            try:
                infos = executor.map(
                    lambda name: self._persist(name, lambda: self._call_hub(name, dry_run=True)), names
                )
                progress.total = sum(info.file_size or 0 for info in infos if info.will_download)
                fetching = [executor.submit(self.fetch, name, check, progress) for name in names]
                for future in as_completed(fetching):
                    future.result()
            except BaseException:
                self._stop.set()
                executor.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in fetching]

    def fetch(self, name: PurePosixPath, check: Callable[[Path], object], progress: tqdm | None = None) -> Path:
        """Fetch one file that `check` has no UserError about, in a few attempts.

        Raises:
            UserError: the file does not exist, the hub cannot be reached, or no attempt brought a good file.
        """

        def attempt() -> Path:
            counter = _Counter(progress, self._stop)
            try:
                path = Path(self._call_hub(name, tqdm_class=counter.bar_class()))
                try:
                    check(path)
                except UserError as error:
                    path.unlink()
                    raise _DamagedFileError(str(error).rpartition(": ")[0]) from error
            except Exception:
                counter.take_back()
                raise
            return path

        return self._persist(name, attempt)

    def _persist(self, name: PurePosixPath, attempt: Callable[[], T]) -> T:
        delay = FIRST_DELAY_SECONDS
        for _ in range(NUM_ATTEMPTS):
            try:
                return attempt()
            except UserError:
                raise
            except Exception as error:  # whatever the transports under the hub's client raise
                reason = _first_line(error)
            if self._stop.wait(delay):
                break
            delay *= 2
        raise UserError(
            f"{name} could not be downloaded from {constants.ENDPOINT} in {NUM_ATTEMPTS} attempts ({reason}): "
            "run the command again, it keeps what is whole"
        )

    def _call_hub(self, name: PurePosixPath, **options: Any) -> Any:
        where = f"{REPOSITORY} at {constants.ENDPOINT}"
        try:
            return huggingface_hub.hf_hub_download(
                REPOSITORY, str(name), repo_type="dataset", local_dir=self.folder, **options
            )
        except RemoteEntryNotFoundError as error:
            raise UserError(f"{where} has no file {name}: see on the hub whether the export was moved") from error
        except RepositoryNotFoundError as error:
            raise UserError(f"there is no dataset {where}: set HF_TOKEN if the hub asks for one") from error
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"{name} cannot be fetched from {constants.ENDPOINT} ({_first_line(error.__cause__ or error)}): "
                "check the network and HF_ENDPOINT, then run the command again, it keeps what is whole"
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or repr(error)


class _Counter:
    """Adds the bytes of one attempt at a file to the progress of all."""

    def __init__(self, progress: tqdm | None, stop: threading.Event) -> None:
        self._progress = progress
        self._stop = stop
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise InterruptedError("another download failed")
        self._num_bytes += num_bytes
        if self._progress is not None:
            with self._progress.get_lock():
                self._progress.update(num_bytes)

    def take_back(self) -> None:
        if self._progress is not None:
            with self._progress.get_lock():
                self._progress.update(-self._num_bytes)

    def bar_class(self) -> type[tqdm]:
        """What the hub's client takes for the progress bar of the file."""
        counter = self

        class Bar(tqdm):
            def __init__(self, *_: object, **__: object) -> None:
                super().__init__(disable=True)

            def update(self, n: float | None = 1) -> None:
                counter.add(int(n or 0))

        return Bar


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.download", description="Download the published FineWeb export and check it."
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder to fill (default: %(default)s)")
    parser.add_argument("--variant", default="sp1024", help="tokenizer family (default: %(default)s)")
    parser.add_argument(
        "--train-shards",
        type=int,
        default=80,
        help="train shards, of 100,000,000 tokens and 200 MB each (default: %(default)s)",
    )
    args = parser.parse_args()
    hub_logging.set_verbosity_error()
    print(download(args.out, args.variant, args.train_shards))


if __name__ == "__main__":
    run_command(main)
