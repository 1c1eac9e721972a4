"""One HTML page without outside parts: its style, its charts' data and the script that draws them stand in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from records.report.charts import Spec
from records.report.vega import vega_script

HERE = Path(__file__).parent


class Page:
    """Collects a page's body, from top to bottom; text is escaped here, and only HTML that this project wrote is not.

    Args:
        title: The browser's title.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._body: list[str] = []
        self._charts: dict[str, Spec] = {}

    def add(self, *html: str) -> None:
        """Add HTML."""
        self._body += html

    def section(self, title: str, note: str = "") -> None:
        """Begin a section."""
        note_html = f"<p>{escape(note)}</p>" if note else ""
        self.add(f"<section><h2>{escape(title)}</h2>{note_html}")

    def end_section(self) -> None:
        """End the section."""
        self.add("</section>")

    def figure(self, name: str, spec: Spec | None, caption: str, missing: str, chooser: str = "") -> None:
        """Add a chart, or the reason why there is none.

        Args:
            name: Its id.
            spec: The chart.
            caption: What it shows, read before it.
            missing: The sentence that stands for a missing chart.
            chooser: Id of an element above it, in which the reader chooses what it shows.
        """
        if spec is None:
            self.add(f'<figure class="card"><figcaption>{escape(missing)}</figcaption></figure>')
            return
        self._charts[name] = spec
        choice = f'<div class="chooser" id="{chooser}"></div>' if chooser else ""
        self.add(
            f'<figure class="card"><figcaption>{escape(caption)}</figcaption>{choice}'
            f'<div class="chart" id="{name}" role="img" aria-label="{escape(caption)}"></div></figure>'
        )

    def html(self) -> str:
        """The whole page."""
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self._title)}</title>",
                f"<style>\n{(HERE / 'page.css').read_text()}</style></head><body><main>",
                *self._body,
                "</main>",
                f'<script type="application/json" id="charts">{as_json(self._charts)}</script>',
                f"<script>{vega_script()}</script>",
                f"<script>\n{(HERE / 'page.js').read_text()}</script>",
                "</body></html>",
                "",
            ]
        )


def as_json(content: Any) -> str:
    """JSON that may stand in a script element: no text in it can end the element, and no number is not finite."""
    text = json.dumps(_finite(content), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def tile(value: str, label: str, share: float | None = None) -> str:
    """A figure with its label, and how much of its limit it takes."""
    meter = ""
    if share is not None:
        over = " over" if share > 1 else ""
        meter = f'<div class="meter{over}"><i style="width:{min(1.0, share):.2%}"></i></div>'
    return f'<div class="tile"><b>{escape(value)}</b>{escape(label)}{meter}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of HTML cells, which scrolls where the page is narrow.

    Args:
        head: The columns' titles, as text.
        rows: The cells, as HTML.
        numeric: The columns of numbers.
    """
    kind = [' class="number"' if column in numeric else ' class="value"' for column in range(len(head))]
    titles = "".join(f"<th{kind[column]}>{escape(title)}</th>" for column, title in enumerate(head))
    lines = (
        "<tr>" + "".join(f"<td{kind[column]}>{cell}</td>" for column, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll card"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; values are HTML."""
    return f'<dl class="card">{"".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in pairs)}</dl>'


def chip(color: str) -> str:
    """A square in a chart's color."""
    return f'<span class="chip" style="background:{color}"></span>'


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
