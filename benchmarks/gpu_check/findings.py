"""What the check's parts find, and how a part ends."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar


class Skipped(Exception):  # noqa: N818
    """A part cannot run here; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One thing that a part measured.

    Args:
        name: What it is.
        value: Its number, or a word.
        unit: Its unit.
        predicted: What it was predicted to be.
        limit: The most that it may be; None for no limit.
    """

    name: str
    value: float | str
    unit: str = ""
    predicted: float | None = None
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value is within its limit; NaN is not."""
        return self.limit is None or (not isinstance(self.value, str) and self.value <= self.limit)


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Args:
        part: The part's name.
        status: How it ended.
        reason: Why it failed or was skipped.
        seconds: How long it took.
        findings: What it found, up to an error if there was one.
    """

    part: str
    status: Literal["passed", "failed", "skipped"]
    reason: str
    seconds: float
    findings: list[Finding]


Setting = TypeVar("Setting")


def run_part(name: str, part: Callable[[Setting], Iterator[Finding]], setting: Setting) -> Outcome:
    """Run a part to its end or to its first error, which is printed and becomes the outcome's reason."""
    findings: list[Finding] = []
    started = time.perf_counter()

    def ended(status: Literal["passed", "failed", "skipped"], reason: str = "") -> Outcome:
        return Outcome(name, status, reason, time.perf_counter() - started, findings)

    try:
        for finding in part(setting):
            findings.append(finding)
    except Skipped as skipped:
        return ended("skipped", str(skipped))
    except (Exception, SystemExit) as error:  # a command of the project exits where it cannot go on
        traceback.print_exc()
        said = " ".join(str(error).split())
        return ended("failed", f"{type(error).__name__}: {said}")
    broken = [finding.name for finding in findings if not finding.holds]
    return ended("failed", f"over its limit: {', '.join(broken)}") if broken else ended("passed")
