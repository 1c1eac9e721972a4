"""Opens a page in headless Chromium, and tells what it shows."""

import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium, which opens the page, is not installed")

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"


class Shown(HTMLParser):
    """What a page shows after its script has run.

    Attributes:
        marks: the number of drawn marks of each chart, by the chart's id.
        options: the choices of all choosers.
        text: the text outside scripts and styles.
        errors: what the browser's console says.
    """

    def __init__(self, html: str, errors: list[str]) -> None:
        super().__init__()
        self.marks: Counter[str] = Counter()
        self.options: list[str] = []
        self.text = ""
        self.errors = errors
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        classes = [str(each.get("class")) for _, each in self._open]
        if tag == "path" and attributes.get("d") and any("role-mark" in names for names in classes):
            [chart] = [each["id"] for _, each in self._open if "chart" in str(each.get("class")).split()]
            self.marks[str(chart)] += 1
        if tag == "option":
            self.options.append(str(attributes["value"]))
        if tag not in ("meta", "input", "br", "link"):
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(tag in ("script", "style") for tag, _ in self._open):
            self.text += data


def open_page(page: Path, profile: Path) -> Shown:
    """Open a page in a browser without a profile or a network."""
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={profile}", f"file://{page}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return Shown(result.stdout, re.findall(r"CONSOLE[^\n]*", result.stderr))


def charts_of(page: Path) -> list[str]:
    """The ids of a page's charts."""
    return re.findall(r'<div class="chart" id="([\w-]+)"', page.read_text())
