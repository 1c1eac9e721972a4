"""Runs in processes of their own, to which something happens."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support import ROOT

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
ENDLESS = {"trainer.max_steps": 1_000_000, "trainer.val_check_interval": 1_000_000}


class RunningFit:
    """A fit of one or several processes, in a process group of its own as under a terminal.

    Args:
        arguments: What to run after ``python``.
        runs: The runs folder.
    """

    def __init__(self, arguments: Sequence[str], runs: Path) -> None:
        self.runs = runs
        self.output = runs.with_suffix(".out")
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, pattern: str, where: str = "train.log", seconds: float = 120) -> None:
        """Wait for a line in a file of the run's folder, or in its output."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            files = [self.output] if where == "output" else list(self.runs.rglob(where))
            if any(re.search(pattern, file.read_text(errors="replace"), re.MULTILINE) for file in files):
                return
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in {where} after {seconds} s:\n{self.text}")

    @property
    def text(self) -> str:
        """What the processes have printed."""
        return self.output.read_text(errors="replace")

    def ranks(self) -> list[int]:
        """The processes that run the command line, by age: rank 0 first, under Lightning's launcher."""
        return [
            pid
            for pid in self.processes()
            if b"cli.py" in _file(pid, "cmdline") and b"torch.distributed.run" not in _file(pid, "cmdline")
        ]

    def processes(self) -> list[int]:
        """Every process that still runs of those that were started, the oldest first."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and str(self.runs).encode() in _file(int(entry.name), "cmdline"):
                found.append(int(entry.name))
        return sorted(found)

    def end(self, seconds: float) -> int:
        """The exit code, when every process has ended, at the latest after so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.text}") from None
        while self.processes():
            assert time.monotonic() < deadline, f"{self.processes()} still run after {seconds} s:\n{self.text}"
            time.sleep(0.05)
        return code

    def press_ctrl_c(self) -> None:
        """As a terminal does: to every process of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)


@contextlib.contextmanager
def running(arguments: Sequence[str], runs: Path) -> Iterator[RunningFit]:
    """A fit that does not outlive the test."""
    fit = RunningFit(arguments, runs)
    try:
        yield fit
    finally:
        for pid in fit.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        fit.process.wait()


def _file(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
