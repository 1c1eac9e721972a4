"""``python -m records.audit.table``: write the table in records/README.md from the checks' docstrings."""

from __future__ import annotations

import re
from pathlib import Path

from components.files import write_whole
from records.audit.checks import GROUPS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- records.audit.table: begin -->\n", "<!-- end -->"


def table() -> str:
    """The table of checks in Markdown."""
    rows = []
    for check in (check for group in GROUPS for check in group):
        of_run = "of each run: " if check.of_run else ""
        rows.append(f"| {check.name} | {check.word} | {of_run}{check.passes_when.removesuffix('.')} |")
    return "\n".join(["| line | by | passes if this holds |", "| --- | --- | --- |", *rows]) + "\n"


def with_table(text: str) -> str:
    """A README's text with the current table between its markers."""
    return re.sub(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", lambda found: table(), text, flags=re.DOTALL)


if __name__ == "__main__":
    write_whole(README, with_table(README.read_text()).encode())
