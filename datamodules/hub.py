"""Download a Hugging Face dataset's files: several at once, with retries and one progress bar."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError
from tqdm import tqdm

from components.errors import UserError

NUM_WORKERS = 8
NUM_ATTEMPTS = 4
FIRST_DELAY_SECONDS = 1.0
"""Delay before the second attempt at a file; doubles with each retry."""

T = TypeVar("T")


class Hub:
    """Downloads a repository's files into a folder, keeping their paths.

    Args:
        repository: A dataset on the hub, as owner/name.
        folder: Where the files go.
    """

    def __init__(self, repository: str, folder: Path) -> None:
        self.repository = repository
        self.folder = folder
        self._stop = threading.Event()

    def fetch_all(self, names: list[PurePosixPath], check: Callable[[Path], object]) -> list[Path]:
        """Download several files at once with a progress bar; see `fetch`."""
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
        """Download one file, with retries.

        Args:
            name: The file's path in the repository.
            check: Raises a UserError if the file is damaged; it is then downloaded again.
            progress: Counts the bytes that arrive.

        Raises:
            UserError: The file does not exist, the hub cannot be reached, or every attempt gave a damaged file.
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
            except Exception as error:  # the hub client's transports can raise anything
                reason = _first_line(error)
            if self._stop.wait(delay):
                break
            delay *= 2
        raise UserError(
            f"{name} could not be downloaded from {constants.ENDPOINT} in {NUM_ATTEMPTS} attempts ({reason}): "
            "run the command again; it keeps the files that are complete"
        )

    def _call_hub(self, name: PurePosixPath, **options: Any) -> Any:
        where = f"{self.repository} at {constants.ENDPOINT}"
        try:
            return huggingface_hub.hf_hub_download(
                self.repository, str(name), repo_type="dataset", local_dir=self.folder, **options
            )
        except RemoteEntryNotFoundError as error:
            raise UserError(f"{where} has no file {name}: check on the hub whether it was moved") from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"there is no dataset {where}: check --repository, and set HF_TOKEN if the dataset is private"
            ) from error
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"{name} cannot be fetched from {constants.ENDPOINT} ({_first_line(error.__cause__ or error)}): "
                "check the network and HF_ENDPOINT, then run the command again; it keeps the files that are complete"
            ) from error


class _DamagedFileError(Exception):
    """A downloaded file failed its check."""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or repr(error)


class _Counter:
    """Adds the bytes of one download attempt to the overall progress."""

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
        """The class that the hub client uses as the file's progress bar."""
        counter = self

        class Bar(tqdm):
            def __init__(self, *_: object, **__: object) -> None:
                super().__init__(disable=True)

            def update(self, n: float | None = 1) -> None:
                counter.add(int(n or 0))

        return Bar
