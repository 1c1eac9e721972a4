"""Confine a child of the audit: restrict its access, limit its resources, then run its command.

    python -I confine.py --folder FOLDER [--namespaces] --memory BYTES --file BYTES -- COMMAND...

With ``--namespaces`` the command sees no network and no other processes, and everything but FOLDER is read-only.
Without it, only the limits apply. Either way, nothing that it starts outlives it or this process. With a process
namespace, the kernel ensures this. Without one, this process adopts orphans and kills them.

Requires only Python and Linux 5.12.
"""

import argparse
import ctypes
import os
import resource
import signal
import sys

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
_SHARED_MEMORY = "/dev/shm"
_SHARED_MEMORY_BYTES = 1 << 30
_INSIDE = 1000
"""The user id inside: only user 0 keeps its capabilities across exec."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    _check(_libc.mount(*words, flags, options.encode() if options else None), f"mount {target}")


def _set_read_only(target: str, read_only: bool) -> None:
    """Make a whole mount tree read-only, or a single mount writable again."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY * read_only, _MOUNT_ATTR_RDONLY * (not read_only), 0, 0)
    flags = _AT_RECURSIVE if read_only else 0
    result = _libc.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    _check(result, f"mount_setattr {target}")


def enter_namespaces(folder: str) -> None:
    """Detach from the machine's network and processes, and make all files but one folder read-only.

    A new process continues, the first in its namespace.

    Raises:
        OSError: the kernel does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    _check(_libc.unshare(flags), "unshare")
    for file, text in (("setgroups", "deny"), ("uid_map", f"{_INSIDE} {user} 1"), ("gid_map", f"{_INSIDE} {group} 1")):
        with open(f"/proc/self/{file}", "w") as stream:
            stream.write(text)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount(folder, folder, None, _MS_BIND | _MS_REC)
    writable = [folder]
    if os.path.isdir(_SHARED_MEMORY):
        _mount("tmpfs", _SHARED_MEMORY, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_SHARED_MEMORY_BYTES}")
        writable.append(_SHARED_MEMORY)
    _set_read_only("/", True)
    for path in writable:
        _set_read_only(path, False)
    os.chdir(folder)
    _go_on_in_child()
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _go_on_in_child() -> None:
    """Fork; the parent waits and exits with the child's code, and the child dies with the parent.

    The first process of a namespace can be waited for only when all others in it are gone. On SIGTERM, the parent
    kills it and waits, so nothing is left once the parent has exited.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child:
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os._exit(_wait(child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _wait(child: int) -> int:
    """A child's exit code, as in a shell; other processes that exit meanwhile are reaped."""
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _end_orphans() -> None:
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as stream:
            children = [int(word) for word in stream.read().split()]
        if not children:
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
        for _ in children:
            os.wait()


def _be_told_to_end(number: int, frame: object) -> None:
    _end_orphans()
    os._exit(128 + number)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--file", type=int, required=True)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(arguments)
    os.chdir(args.folder)
    if args.namespaces:
        enter_namespaces(args.folder)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, _be_told_to_end)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        for limit, most in (
            (resource.RLIMIT_DATA, args.memory),
            (resource.RLIMIT_FSIZE, args.file),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (most, most))
        os.execv(args.command[0], args.command)
    code = _wait(child)
    _end_orphans()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
