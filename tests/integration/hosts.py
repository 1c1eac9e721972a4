"""Two hosts on one machine: network namespaces, joined by a virtual cable that can be cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT

INTERFACE = "golf0"
PORT = 29500


def why_not() -> str | None:
    """Why this machine cannot make hosts; None if it can."""
    if shutil.which("ip") is None:
        return "the rehearsal needs the command ip, of the package iproute2"
    name = f"golf-try-{os.getpid()}"
    made = _ip("netns", "add", name)
    if made.returncode:
        return f"the rehearsal needs root and network namespaces (ip netns add: {made.stderr.strip()})"
    _ip("netns", "delete", name)
    return None


@dataclass(frozen=True)
class Host:
    """A host with a network of its own and the file system of all.

    Attributes:
        name: Its namespace.
        address: Its IPv4 address.
    """

    name: str
    address: str

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command here, with its output in a file."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MASTER_", "PL_", "PYTEST"))}
        environment = {
            **kept,
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }
        with log.open("wb") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command], cwd=ROOT, env=environment, stdout=out, stderr=out
            )

    def start_rank(self, first: Host, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start this host's one rank of a run under torchrun, which meets at the first host.

        Both hosts have the machine's name, which is the address of neither, so torchrun is told who hosts the meeting.
        """
        launcher = (
            *("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d"),
            *(f"--rdzv_endpoint={first.address}:{PORT}", f"--rdzv_conf=is_host={int(self == first)}"),
            *("--rdzv_id=rehearsal", f"--local_addr={self.address}"),
        )
        return self.start([sys.executable, *launcher, "cli.py", *arguments], log)

    def unplug(self) -> None:
        """Cut the cable."""
        _must("-n", self.name, "link", "set", INTERFACE, "down")

    def plug_in(self) -> None:
        """Join the cable again."""
        _must("-n", self.name, "link", "set", INTERFACE, "up")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, joined by a cable; removed at the end."""
    hosts = tuple(Host(f"golf-{os.getpid()}-{n}", f"10.77.0.{n}") for n in (1, 2))
    first, second = hosts
    try:
        for host in hosts:
            _must("netns", "add", host.name)
            _must("-n", host.name, "link", "set", "lo", "up")
        _must(
            *("link", "add", INTERFACE, "netns", first.name, "type", "veth"),
            *("peer", "name", INTERFACE, "netns", second.name),
        )
        for host in hosts:
            _must("-n", host.name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            host.plug_in()
        yield first, second
    finally:
        for host in hosts:
            _ip("netns", "delete", host.name)


def _must(*words: str) -> None:
    result = _ip(*words)
    assert result.returncode == 0, result.stderr


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
