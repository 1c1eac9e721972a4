"""Checkpoints written behind a run's back: copied at once, then checked and written by a thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from components.files import written_beside

STAGING_BYTES = 1 << 26
"""Bytes of pinned memory through which a GPU's tensors leave."""


class CheckpointWriter:
    """Keep the newest whole checkpoints of a run in a folder, as ``step_N.ckpt``.

    A file gets its name only when all its bytes are on the disk and every number in it is finite, so that a process
    killed at any moment leaves whole files alone. A disk that cannot take a checkpoint is a problem to report, not an
    error.

    Args:
        folder: The folder; created when it is needed.
        keep: How many checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep
        self._thread: threading.Thread | None = None
        self._problems: list[str] = []
        self._staging: Tensor | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, step: int, state: dict[str, Any], loss: Tensor | None) -> None:
        """Copy the state on its device, and leave the rest to a thread; the previous one must be done.

        Args:
            step: Optimizer steps so far.
            state: What to save.
            loss: The step's loss, which must be finite for the checkpoint to be good.
        """
        assert not self.is_busy
        copy, loss_copy = _clone((state, loss))
        copied = None
        if torch.cuda.is_initialized():
            copied = torch.cuda.Event()
            copied.record()
        # No daemon: the interpreter waits for it, since torch in a daemon thread may abort an exiting process.
        self._thread = threading.Thread(
            target=self._finish, args=(step, copy, loss_copy, copied), name="checkpoint writer"
        )
        self._thread.start()

    def write(self, step: int, state: dict[str, Any], loss: Tensor | None) -> None:
        """Write the state before returning."""
        self.wait()
        self.start(step, state, loss)
        self.wait()

    def wait(self) -> None:
        """Wait until no checkpoint is being written."""
        if self._thread is not None:
            self._thread.join()

    def remove_all_but(self, count: int) -> None:
        """Delete all checkpoints but the newest few."""
        for old in checkpoints_in(self.folder)[count:]:
            old.unlink(missing_ok=True)

    def take_problems(self) -> list[str]:
        """Why checkpoints were not saved since the last call, one sentence each, without the final period."""
        problems, self._problems = self._problems, []
        return problems

    def _finish(self, step: int, state: dict[str, Any], loss: Tensor | None, copied: torch.cuda.Event | None) -> None:
        path = self.folder / f"step_{step}.ckpt"
        try:
            state, loss = self._on_host((state, loss), copied)
            if not all_finite((state, loss)):
                self._problems.append(
                    f"the checkpoint of step {step} was not saved, since not all its numbers are finite"
                )
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with written_beside(path) as scratch:
                _save(state, scratch)
            self.remove_all_but(self.keep)
        except OSError as error:
            self._problems.append(f"the checkpoint of step {step} was not saved in {self.folder} ({error.strerror})")

    def _on_host(self, tree: Any, copied: torch.cuda.Event | None) -> Any:
        if copied is None:
            return tree
        stream = torch.cuda.Stream()
        stream.wait_event(copied)
        with torch.cuda.stream(stream):
            return tree_map_only(Tensor, lambda tensor: self._fetch(tensor, stream), tree)

    def _fetch(self, tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
        """A GPU's contiguous tensor in ordinary memory, by way of pinned memory, at the full speed of the bus."""
        if tensor.device.type == "cpu":
            return tensor
        if self._staging is None:
            self._staging = torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True)
        result = torch.empty_like(tensor, device="cpu")
        source, target = (t.reshape(-1).view(torch.uint8) for t in (tensor, result))
        for source_part, target_part in zip(source.split(STAGING_BYTES), target.split(STAGING_BYTES), strict=True):
            staged = self._staging[: len(source_part)]
            staged.copy_(source_part, non_blocking=True)
            stream.synchronize()
            target_part.copy_(staged)
        return result


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint's run had taken, from its name."""
    return int(checkpoint.stem.removeprefix("step_"))


def all_finite(tree: Any) -> bool:
    """Whether every number of every tensor in nested containers is finite."""
    return all(bool(torch.isfinite(leaf).all()) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _save(state: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        # After a failed write torch still closes its archive, whose error hides the first.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _clone(tree: Any) -> Any:
    """Nested containers with copies of their tensors, each contiguous on its own device."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(memory_format=torch.contiguous_format), tree)
