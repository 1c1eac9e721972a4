"""The page that lays several runs over each other, with the differences of their settings."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from components.artifact import MAX_BYTES
from components.run_files import RUNS_NAME
from records.report import charts
from records.report.model_facts import bytes_by_kind, read_model_facts
from records.report.page import Page, chip, table, tile
from records.report.record import Record
from records.report.settings import differing, written
from records.report.single import NO_HISTORY, SCORES

OVERLAYS = (
    ("loss", "loss/train", "nats per token", "Training loss."),
    ("speed", "speed/tokens_per_second", "tokens per second", "Tokens a second."),
    ("rates", "lr/matrices", "learning rate", "Learning rate of the matrices."),
)


def comparison_page(records: Sequence[Record]) -> str:
    """The page as HTML."""
    names = short_names([record.folder for record in records])
    page = Page(f"{len(records)} runs · comparison")
    _head(page, records, names)
    page.section("Training")
    (loss, *others) = OVERLAYS
    page.figure(loss[0], charts.overlay_chart(records, names, *loss[1:3]), loss[3], NO_HISTORY)
    caption = "Validations, and each exported file's score at its end."
    page.figure("scores", charts.scores_chart(records, names), caption, NO_HISTORY)
    page.add('<div class="pair">')
    for figure, tag, title, words in others:
        page.figure(figure, charts.overlay_chart(records, names, tag, title), words, NO_HISTORY)
    page.add("</div>")
    page.end_section()
    page.section("Where the bytes go")
    parts = [_parts(record) for record in records]
    missing = "None of the runs has left an artifact."
    page.figure("bytes", charts.sizes_chart(names, parts), "Bytes of artifact and code, by kind.", missing)
    page.end_section()
    _settings(page, records, names)
    return page.html()


def short_names(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart: their paths below the folder that they share, without what Lightning adds."""
    resolved = [folder.resolve() for folder in folders]
    common = os.path.commonpath(resolved)
    below = [[part for part in path.relative_to(common).parts if part != RUNS_NAME] for path in resolved]
    if len({tuple(parts[:1]) for parts in below}) == len(below):  # such as the seeds of a sweep
        below = [parts[:1] for parts in below]
    return [" / ".join(parts) for parts in below]


def _head(page: Page, records: Sequence[Record], names: Sequence[str]) -> None:
    page.add('<header><p class="eyebrow">Parameter golf · comparison</p>', f"<h1>{len(records)} runs</h1>")
    results = [record.summary["val_bpb"] for record in records if "val_bpb" in record.summary]
    if results:
        spread = f", standard deviation {statistics.stdev(results):.4f}" if len(results) > 1 else ""
        page.add(
            f'<div class="tiles">{tile(f"{min(results):.4f}", "best, in bits per byte")}'
            f"{tile(f'{statistics.fmean(results):.4f}', f'mean of {len(results)} results{spread}')}</div>"
        )
    head = ("run", *(label for label, _ in SCORES), "bytes", "of the cap", "steps", "seconds")
    page.add(table(head, [_row(*pair) for pair in zip(records, _labels(names), strict=True)], range(1, len(head))))
    page.add("</header>")


def _labels(names: Sequence[str]) -> list[str]:
    return [chip(charts.part_color(place)) + escape(name) for place, name in enumerate(names)]


def _row(record: Record, label: str) -> tuple[str, ...]:
    facts = record.summary
    total = facts.get("bytes_total")
    return (
        label,
        *("" if facts.get(field) is None else f"{facts[field]:.4f}" for _, field in SCORES),
        "" if total is None else f"{total:,}",
        "" if total is None else f"{total / MAX_BYTES:.1%}",
        f"{facts['step_stop']:,}" if "step_stop" in facts else "",
        f"{facts['wallclock_seconds']:,.1f}" if "wallclock_seconds" in facts else "",
    )


def _parts(record: Record) -> dict[str, float]:
    parts = {} if record.artifact is None else bytes_by_kind(read_model_facts(record.artifact, None))
    code = record.summary.get("bytes_code")
    return parts if code is None else {**parts, "code": code}


def _settings(page: Page, records: Sequence[Record], names: Sequence[str]) -> None:
    rows = differing(records)
    if not rows:
        page.section("Settings", "All settings are the same.")
    else:
        page.section("Settings", "These settings differ; all others are the same in all runs.")
        cells = [
            (f"<code>{escape(name)}</code>", *(escape(written(value)) for value in values))
            for name, values in rows.items()
        ]
        page.add(table(("setting", *names), cells))
    page.end_section()
