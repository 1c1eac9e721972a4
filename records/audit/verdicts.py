"""An audit's verdicts, one per line, and their sources."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The outcome of a check."""

    PASS = "pass"
    FAIL = "FAIL"
    LOOK = "look here"
    UNKNOWN = "could not check"


class Word(StrEnum):
    """The source that a verdict relies on.

    Only what this project counts, computes or scores from the folder's own bytes is `OURS`. The others are only as
    good as their source: a log, the run's own record or the audited script.
    """

    OURS = "ours"
    LOG = "the log"
    RECORD = "the record"
    SCRIPT = "the script"


@dataclass(frozen=True)
class Verdict:
    """One line of the table, with printable texts.

    Attributes:
        check: the check's name in the table of checks.
        run: which run, "" for the whole folder.
        state: the outcome.
        word: its source.
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
    """A check that was performed and failed; the message says why."""


class Unknown(Exception):  # noqa: N818
    """A check that could not be performed; the message says why."""


class Look(Exception):  # noqa: N818
    """A place in the script that a reviewer should read; the message says where and why."""


def printable(text: str) -> str:
    """Escape what a terminal could interpret in untrusted text: control characters, line ends and surrogates.

    Letters of any script are kept; the others become escapes.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
