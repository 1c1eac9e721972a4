"""The audit's children: each is contained and limited, in an empty folder of its own.

A child sees the machine's files read-only. Its own folder starts with the files that it is given and is deleted
afterward. It has no network, sees only its own processes, and gets only the environment that a program needs to start.
Its files are written for it alone, so it cannot change what another child reads.

Bubblewrap is used if it is installed, or user namespaces if they are allowed. Otherwise the limits on time, memory,
output and disk still apply, and `Box.sentence` says what does not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

_CONFINE = Path(__file__).with_name("confine.py")
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TZ")
_PROGRESS_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_MAX_KEPT_OUTPUT = 1 << 16
_MAX_RESULT_BYTES = 1 << 20
_MAX_FILE_BYTES = 1 << 30
MAX_MEMORY_BYTES = min(16 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4)


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: wall-clock time.
        memory_bytes: for each of its processes, and for all of them together.
        output_bytes: how much it may print.
        disk_bytes: how much free disk space may shrink meanwhile.
    """

    seconds: float
    memory_bytes: int = MAX_MEMORY_BYTES
    output_bytes: int = 16 << 20
    disk_bytes: int = 4 << 30


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; 128 plus the signal's number if a signal ended it.
        output: the end of what it printed.
        stopped: which limit it exceeded, in words; None if it ended by itself.
        report: what it wrote to the file descriptor in the variable REPORT.
        kept: the requested files from its folder that are regular files.
    """

    code: int
    output: str
    stopped: str | None
    report: bytes = b""
    kept: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def last_line(self) -> str:
        """Its reason for failing, if it gives one."""
        if self.stopped is not None:
            return self.stopped
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with code {self.code} and said nothing"


@dataclass(frozen=True)
class Job:
    """A child's task.

    Attributes:
        command: a program's path and its arguments.
        files: its folder's initial contents, by name.
        limits: what it may use.
        keep: names of files to read from its folder at the end.
        secret: its standard input.
        doing: what to call it if it takes long.
    """

    command: Sequence[str]
    files: Mapping[str, bytes]
    limits: Limits
    keep: Sequence[str] = ()
    secret: str = ""
    doing: str = ""


class Runner(Protocol):
    """Runs a job in a folder of its own."""

    def run(self, job: Job) -> Ended:
        """Run it until it ends or exceeds a limit."""


@dataclass(frozen=True)
class Box:
    """Runs commands with the best containment that the machine supports.

    Attributes:
        way: ``bubblewrap``, ``namespaces`` or ``limits``.
    """

    way: str

    @classmethod
    def of_this_machine(cls) -> Box:
        """The best method that works here."""
        return next(box for box in map(cls, ("bubblewrap", "namespaces", "limits")) if box.works())

    def works(self) -> bool:
        """Whether commands can run this way here."""
        if self.way == "bubblewrap" and shutil.which("bwrap") is None:
            return False
        return _works(self.way)

    def sentence(self) -> str:
        """What a child can and cannot do, in words for the user about to start one."""
        if self.way == "limits":
            return (
                "NOT CONTAINED: this machine has no bubblewrap and allows no user namespaces, so the script that is "
                "audited can reach the network and your files; only its time, memory, output and disk are limited."
            )
        return (
            f"Contained by {self.way}: no network, no file but its own folder's to write, limited time, memory, output "
            "and disk. It can read what you can read."
        )

    def run(self, job: Job) -> Ended:
        """Run a job until it ends or exceeds a limit."""
        with tempfile.TemporaryDirectory(prefix="audit-", ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch, "work")
            for name, data in job.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            for name in ("home", "tmp"):
                (folder / name).mkdir(parents=True)
            reading, writing = os.pipe()
            try:
                environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
                environment |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "REPORT": str(writing)}
                process = subprocess.Popen(
                    self._wrapped(job, folder),
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    start_new_session=True,
                )
                os.close(writing)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError), process.stdin:  # if it ended before reading anything
                    process.stdin.write(f"{job.secret}\n".encode())
                output, report, stopped = _watch(process, reading, job, folder)
            finally:
                os.close(reading)
            left = {name: _read_plain(folder / name) for name in job.keep}
            kept = {name: content for name, content in left.items() if content is not None}
        return Ended(_code(process.returncode), output, stopped, report, kept)

    def _wrapped(self, job: Job, folder: Path) -> list[str]:
        confine = [sys.executable, "-I", str(_CONFINE), "--folder", str(folder)]
        confine += ["--namespaces"] if self.way == "namespaces" else []
        confine += ["--memory", str(job.limits.memory_bytes), "--file", str(_MAX_FILE_BYTES), "--", *job.command]
        if self.way != "bubblewrap":
            return confine
        bubble = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/"]
        bubble += ["--dev-bind", "/dev", "/dev", "--tmpfs", "/dev/shm", "--proc", "/proc"]
        return [*bubble, "--bind", str(folder), str(folder), "--chdir", str(folder), *confine]


@functools.cache
def _works(way: str) -> bool:
    ended = Box(way).run(Job([sys.executable, "-I", "-c", "print('works')"], {}, Limits(seconds=20)))
    return ended.code == 0 and ended.output == "works\n"


def _watch(process: subprocess.Popen[bytes], reading: int, job: Job, folder: Path) -> tuple[str, bytes, str | None]:
    """Read a process's output until it ends or exceeds a limit, then kill it and all that it started."""
    assert process.stdout is not None
    heard = {process.stdout.fileno(): bytearray(), reading: bytearray()}
    counted = dict.fromkeys(heard, 0)
    started = said = time.monotonic()
    free = shutil.disk_usage(folder).free
    stopped = None
    with selectors.DefaultSelector() as selector:
        for descriptor in heard:
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while stopped is None:
            ended = process.poll() is not None  # before reading, so its final output is read
            _hear(selector, heard, counted)
            if ended:
                break
            now = time.monotonic()
            stopped = _broken(job.limits, now - started, counted, process.pid, free - shutil.disk_usage(folder).free)
            if now - said > _PROGRESS_SECONDS and job.doing:
                said = now
                print(f"... {job.doing}: {now - started:.0f} s", file=sys.stderr, flush=True)
    _end(process)
    output = heard[process.stdout.fileno()].decode(errors="replace")
    process.stdout.close()
    return output, bytes(heard[reading]), stopped


def _hear(selector: selectors.BaseSelector, heard: dict[int, bytearray], counted: dict[int, int]) -> None:
    """Read what is available now, or wait briefly if there is nothing."""
    for key, _ in selector.select(_LOOK_SECONDS):
        descriptor = key.fd
        data = os.read(descriptor, 1 << 16)
        if not data:
            selector.unregister(descriptor)
        counted[descriptor] += len(data)
        heard[descriptor] += data
        del heard[descriptor][:-_MAX_KEPT_OUTPUT]
    if not selector.get_map():
        time.sleep(_LOOK_SECONDS)


def _broken(limits: Limits, seconds: float, counted: Mapping[int, int], pid: int, disk: int) -> str | None:
    """Which limit is exceeded, in words."""
    if seconds > limits.seconds:
        return f"took more than {limits.seconds:g} s"
    if max(counted.values()) > limits.output_bytes:
        return f"printed more than {limits.output_bytes:,} bytes"
    if disk > limits.disk_bytes:
        return f"wrote more than {limits.disk_bytes:,} bytes"
    if _resident_bytes(pid) > limits.memory_bytes:
        return f"took more than {limits.memory_bytes:,} bytes of memory"
    return None


def _resident_bytes(root: int) -> int:
    """Memory held by a process and its descendants, in bytes."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            shared = Path(entry.path, "statm").read_bytes().split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(words[1]), []).append(int(entry.name))
        resident[int(entry.name)] = (int(shared[1]) - int(shared[2])) * page  # excludes shared memory: the libraries
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        total += resident.get(pid, 0)
        todo += children.get(pid, [])
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group; the first signal lets the confining process kill what left the group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):  # if everything has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _read_plain(path: Path) -> bytes | None:
    """A file's content, if it is a regular file of a valid result's size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as stream:
        return stream.read(_MAX_RESULT_BYTES)
