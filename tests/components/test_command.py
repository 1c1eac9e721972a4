"""How a command ends: in one line for its user, or in a traceback for its programmer."""

import errno
import os

import pytest

from components.command import run_command
from components.errors import UserError


def raising(error: BaseException) -> None:
    def main() -> None:
        raise error

    run_command(main)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UserError("no data folder at x: make one"), "error: no data folder at x: make one\n", 1),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.bin"), "error: No space left on device: x.bin\n", 1),
        (OSError("shut"), "error: shut\n", 1),
        (KeyboardInterrupt(), "", 130),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, line: str, code: int
) -> None:
    with pytest.raises(SystemExit) as stopped:
        raising(error)
    assert stopped.value.code == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="bug"):
        raising(ValueError("bug"))
