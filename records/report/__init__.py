"""``report.html``: a run, or several over each other, as one page that opens offline.

Drawn by Vega-Lite: its charts are data rather than code, their colors can be CSS variables, so that light and dark need
no second drawing, and its script takes 0.9 MB, inlined. Plotly's package holds only its full script, 4.7 MB. Matplotlib
would need no script, but its pictures cannot show a value or choose a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.files import write_whole
from records.report.comparison import comparison_page
from records.report.record import open_record
from records.report.single import run_page

REPORT = "report.html"
"""Name of the file in a run's folder."""


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or one that lays several over each other.

    Args:
        folders: The runs' folders, ``.../version_N``.
        out: The file to write; by default ``report.html`` in the only run's folder.

    Returns:
        The file that was written.

    Raises:
        OSError: The page cannot be written.
        UserError: A folder is not that of a run.
    """
    records = [open_record(folder) for folder in folders]
    path = out or records[0].folder / REPORT
    page = run_page(records[0]) if len(records) == 1 else comparison_page(records)
    write_whole(path, page.encode())
    return path
