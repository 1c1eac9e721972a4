"""What a child can and cannot do, tried by children that try to."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from records.audit.contained import Box, Ended, Job, Limits

WAYS = [box for box in map(Box, ("bubblewrap", "namespaces", "limits")) if box.works()]
CONTAINED = [box for box in WAYS if box.way != "limits"]

every_way = pytest.mark.parametrize("box", WAYS, ids=lambda box: box.way)
needs_containment = pytest.mark.skipif(
    not CONTAINED, reason="this machine has no bubblewrap and allows no user namespaces"
)


def run(
    box: Box, code: str, files: dict[str, bytes] | None = None, keep: tuple[str, ...] = (), **limits: float
) -> Ended:
    command = [sys.executable, "-I", "-c", code]
    return box.run(Job(command, files or {}, Limits(**{"seconds": 30, **limits}), keep, "a secret"))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["bubblewrap", "namespaces"])
def test_this_machine_contains(way: str) -> None:
    if way not in [box.way for box in WAYS]:
        pytest.skip(f"{way} does not work on this machine")
    assert Box.of_this_machine().way != "limits"


@every_way
def test_a_child_gets_its_files_and_the_secret_and_leaves_what_is_asked_for(box: Box) -> None:
    code = (
        "import os, sys\n"
        "print(open('sub/a.txt').read(), sys.stdin.readline().strip())\n"
        "open('b.txt', 'w').write('kept')\n"
        "os.symlink('/etc/hostname', 'c.txt')\n"
        "os.write(int(os.environ['REPORT']), b'reported')\n"
        "sys.exit(3)\n"
    )
    ended = run(box, code, {"sub/a.txt": b"given"}, ("b.txt", "c.txt", "d.txt"))
    assert (ended.code, ended.stopped, ended.output) == (3, None, "given a secret\n")
    assert (ended.kept, ended.report) == ({"b.txt": b"kept"}, b"reported")


@every_way
def test_a_child_inherits_no_secret_and_lives_in_a_home_of_its_own(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    ended = run(box, "import os; print(os.environ.get('HF_TOKEN'), os.environ['HOME'], os.environ['TMPDIR'])")
    token, home, temporary = ended.output.split()
    assert token == "None"
    assert home != os.path.expanduser("~")
    assert not Path(home).exists()
    assert Path(temporary).parent == Path(home).parent


@needs_containment
@pytest.mark.parametrize("box", CONTAINED, ids=lambda box: box.way)
def test_a_contained_child_reaches_no_network_no_files_and_no_processes(box: Box, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    code = (
        "import os, socket\n"
        "def tried(what):\n"
        "    try:\n"
        "        return what()\n"
        "    except OSError as error:\n"
        "        return type(error).__name__\n"
        "print(tried(lambda: socket.create_connection(('192.0.2.1', 80), timeout=5)))\n"
        f"print(tried(lambda: open({str(victim)!r}, 'w')))\n"
        f"print(tried(lambda: open({str(Path(__file__).parents[3] / 'cli.py')!r}, 'a')))\n"
        f"print(tried(lambda: os.kill({os.getpid()}, 0)))\n"
        "print(os.system('mount -o remount,rw / 2>/dev/null') != 0)\n"
    )
    assert run(box, code).output.split() == ["OSError", "OSError", "OSError", "ProcessLookupError", "True"]
    assert victim.read_text() == "whole"


@every_way
@pytest.mark.parametrize(
    ("code", "limits", "stopped"),
    [
        ("while True: print('x' * 100_000)", {"output_bytes": 1 << 20}, "printed more than 1,048,576 bytes"),
        (
            "import os\nwhile True: os.write(int(os.environ['REPORT']), b'x' * 10_000)",
            {"output_bytes": 1 << 20},
            "printed more than 1,048,576 bytes",
        ),
        ("while True: pass", {"seconds": 0.7}, "took more than 0.7 s"),
        (
            "import os, time\nfor _ in range(4):\n    if not os.fork():\n        x = b'1' * (64 << 20)\n"
            "        time.sleep(20)\ntime.sleep(20)",
            {"memory_bytes": 1 << 27},
            "took more than 134,217,728 bytes of memory",
        ),
        (
            "for i in range(999):\n    with open(str(i), 'wb') as f:\n        f.write(bytes(1 << 24))\n",
            {"disk_bytes": 1 << 28},
            "wrote more than 268,435,456 bytes",
        ),
    ],
    ids=["flood", "flooded report", "loop", "memory of many", "disk"],
)
def test_a_child_that_breaks_a_limit_is_ended(box: Box, code: str, limits: dict[str, float], stopped: str) -> None:
    ended = run(box, code, **limits)
    assert ended.stopped == stopped
    assert ended.last_line == stopped
    assert len(ended.output) + len(ended.report) <= 1 << 17


@every_way
def test_one_process_cannot_take_more_memory_than_the_limit(box: Box) -> None:
    ended = run(box, "x = bytearray(1 << 30)", memory_bytes=1 << 28)
    assert ended.last_line == "MemoryError"


@every_way
def test_a_daemon_that_holds_the_pipe_is_not_waited_for_and_does_not_live_on(box: Box, tmp_path: Path) -> None:
    mark = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    code = (
        "import os, sys, time\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if not os.fork():\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(25)', {mark!r}])\n"
        "    os._exit(0)\n"
        "time.sleep(0.3)\n"
        "print('done')\n"
    )
    ended = run(box, code)
    assert (ended.output, ended.stopped) == ("done\n", None)
    assert mark not in _command_lines()


@every_way
def test_what_left_the_group_is_ended_with_the_rest_at_a_limit(box: Box) -> None:
    mark = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    code = (
        "import os, sys, time\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(25)', {mark!r}])\n"
        "while True: pass\n"
    )
    assert run(box, code, seconds=1).stopped == "took more than 1 s"
    assert mark not in _command_lines()


def _command_lines() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


@every_way
def test_how_a_child_was_killed_is_its_code(box: Box) -> None:
    assert run(box, "import os; os.kill(os.getpid(), 11)").code == 128 + 11


def test_what_is_not_contained_is_said() -> None:
    assert Box("limits").sentence().startswith("NOT CONTAINED: ")
    assert "no network" in Box("namespaces").sentence()


def test_a_way_that_is_not_here_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not Box("bubblewrap").works()
