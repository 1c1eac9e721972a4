"""What an audit says: a verdict a line, and whose word it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What became of a check."""

    PASS = "pass"
    FAIL = "FAIL"
    LOOK = "look here"
    UNKNOWN = "could not check"


class Word(StrEnum):
    """On whose word a verdict rests.

    Only what is counted, computed or scored by this project from the folder's own bytes is `OURS`. The others are as
    good as their source: a log, the run's record of itself, the script that is audited.
    """

    OURS = "ours"
    LOG = "the log"
    RECORD = "the record"
    SCRIPT = "the script"


@dataclass(frozen=True)
class Verdict:
    """One line of the table, its texts fit to be printed.

    Attributes:
        check: which check, as the table of checks names it.
        run: of which run, "" for the whole folder.
        state: what became of it.
        word: on whose word.
        detail: what was found, or why nothing could be.
    """

    check: str
    run: str
    state: State
    word: Word
    detail: str

    @property
    def name(self) -> str:
        """The check and the run."""
        return f"{self.check}, {self.run}" if self.run else self.check


class Failed(Exception):  # noqa: N818
    """A check that was made and failed; the message says why."""


class Unknown(Exception):  # noqa: N818
    """A check that could not be made; the message says why."""


class Look(Exception):  # noqa: N818
    """A place in the script that a reviewer should read; the message says where and why."""


def printable(text: str) -> str:
    """Text of a stranger's without what a terminal would obey: control characters, line ends and surrogates.

    Letters of any script stay; the others become their escapes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
