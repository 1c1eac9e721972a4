"""The page of one run, from its result at the top to the versions at the bottom."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from components.artifact import MAX_BYTES
from components.errors import UserError
from records.report import charts
from records.report.model_facts import TensorFacts, bytes_by_kind, read_model_facts
from records.report.page import Page, chip, facts, table, tile
from records.report.record import Record
from records.report.samples import write_samples
from records.report.settings import base_name, changes, written

SCORES = (
    ("last weights", "last_weights_bpb"),
    ("averaged", "averaged_bpb"),
    ("exported", "exported_bpb"),
)
"""Bits per byte of the same training at its three ends, in validation's windows, by their fields in the summary."""
NO_HISTORY = "The run has left no history to draw this from."


def run_page(record: Record) -> str:
    """The page as HTML."""
    page = Page(f"{record.name} · run report")
    _head(page, record)
    if record.is_fit:
        _training(page, record)
        _speed(page, record)
    if record.artifact is None:
        page.section("Model", "The run has left no artifact, so there is nothing to show of the model.")
        page.end_section()
    else:
        _model(page, record, record.artifact)
    _settings(page, record)
    _details(page, record)
    return page.html()


def _head(page: Page, record: Record) -> None:
    summary = record.summary
    page.add("<header>", f'<p class="eyebrow">Parameter golf · {"fit" if record.is_fit else "validate"}</p>')
    page.add(f"<h1>{escape(record.name)}</h1>")
    if "val_bpb" in summary:
        what = "bits per byte, scored from the exported file" if record.is_fit else "bits per byte"
        others = [(label, summary[field]) for label, field in SCORES if summary.get(field) is not None]
        page.add(f'<div class="result"><div><div class="score">{summary["val_bpb"]:.4f}</div><p>{what}</p></div>')
        if len(others) > 1:
            cells = "".join(f"<div><b>{score:.4f}</b>{label}</div>" for label, score in others)
            page.add(f'<div class="scores">{cells}</div>')
        page.add("</div>")
    else:
        page.add('<p class="warning">The run has not finished: there is no result yet.</p>')
    page.add(f'<div class="tiles">{"".join(_tiles(record))}</div>')
    for sentence in summary.get("phases_missed", []):
        page.add(f'<p class="warning">A phase never came: {escape(str(sentence))}.</p>')
    page.add("</header>")


def _tiles(record: Record) -> list[str]:
    summary, tiles = record.summary, []
    if "bytes_total" in summary:
        total = summary["bytes_total"]
        left = MAX_BYTES - total
        words = f"{left:,} of {MAX_BYTES:,} left" if left >= 0 else f"{-left:,} over the cap of {MAX_BYTES:,}"
        tiles.append(tile(f"{total:,} bytes", f"artifact and code; {words}", total / MAX_BYTES))
    if "wallclock_seconds" in summary:
        spent, budget = summary["wallclock_seconds"], record.budget_seconds
        limit = f"of training, of {budget:,g} s" if budget else "of training, no time limit"
        tiles.append(tile(f"{spent:,.1f} s", limit, spent / budget if budget else None))
    if "step_stop" in summary:
        tiles.append(tile(f"{summary['step_stop']:,} steps", f"{summary['tokens_seen']:,} tokens read"))
    if "num_params" in summary:
        tiles.append(tile(f"{summary['num_params']:,}", "parameters"))
    if not record.is_fit and "tokens_scored" in summary:
        tiles.append(tile(f"{summary['tokens_scored']:,}", f"tokens scored in {summary['eval_time_seconds']:,.1f} s"))
    return tiles


def _training(page: Page, record: Record) -> None:
    page.section("Training")
    loss = "Training loss over the run's phases, with each validation and the exported file's score."
    page.figure("loss", charts.loss_chart(record), loss, NO_HISTORY)
    page.add('<div class="pair">')
    page.figure("rates", charts.rates_chart(record), "Learning rate of each group of parameters.", NO_HISTORY)
    page.figure("momentum", charts.momentum_chart(record), "Muon's momentum.", NO_HISTORY)
    page.add("</div>")
    events = [entry for entry in record.of("event") if entry["tag"] != "export"]
    if events:
        rows = [(f"{e['step']:,}", f"{e['elapsed']:,.1f}", escape(str(e["sentence"]))) for e in events]
        listed = table(("step", "seconds", "what happened"), rows, numeric=(0, 1))
        page.add(f'<details class="card"><summary>{len(events)} events</summary>{listed}</details>')
    page.end_section()


def _speed(page: Page, record: Record) -> None:
    durations = [row["y"] for row in charts.step_durations(record)]
    note = ""
    if durations:
        median = statistics.median(durations)
        slow = [duration for duration in durations if duration > charts.OUTLIER * median]
        lost = sum(duration - median for duration in slow) / 1000
        note = (
            f"The middle step took {median:,.1f} ms and the longest {max(durations):,.1f} ms. {len(slow):,} of "
            f"{len(durations):,} steps took over {charts.OUTLIER} times the middle one, {lost:,.1f} s more in all."
        )
    page.section("Speed", note)
    page.add('<div class="pair">')
    page.figure("speed", charts.speed_chart(record), "Tokens a second.", NO_HISTORY)
    caption = "Step time: the median, the range of nine steps in ten, and outliers."
    page.figure("step-time", charts.step_time_chart(record), caption, NO_HISTORY)
    page.add("</div>")
    page.end_section()


def _model(page: Page, record: Record, artifact: Path) -> None:
    tensors = read_model_facts(artifact, record.weights)
    page.section("Where the bytes go", f"What the {MAX_BYTES:,} bytes of artifact and code hold.")
    parts = _parts(record, artifact, tensors)
    page.figure("bytes", charts.bytes_chart(parts), "Bytes by kind; the line is the cap.", "")
    page.add(_parts_table(parts, tensors))
    page.end_section()
    page.section("Quantization", "How far the stored weights are from the trained ones, and how the codes are used.")
    caption = "Norm of each matrix's rounding error, over the norm of its weights."
    missing = "The float weights are not beside the artifact, so its rounding errors are not known."
    page.figure("errors", charts.error_chart(tensors), caption, missing)
    page.figure("codes", charts.codes_chart(tensors, "tensor"), "How often each code occurs.", "", chooser="tensor")
    page.end_section()
    _samples(page, artifact)


def _parts(record: Record, artifact: Path, tensors: Sequence[TensorFacts]) -> list[tuple[str, float]]:
    """Names and bytes of what the cap holds, the largest kind of tensor first."""
    parts = list(bytes_by_kind(tensors).items())
    parts.append(("scales and headers", artifact.stat().st_size - sum(size for _, size in parts)))
    if "bytes_code" in record.summary:
        parts.append(("code", record.summary["bytes_code"]))
    return [(name, size) for name, size in parts if size > 0]


def _parts_table(parts: Sequence[tuple[str, float]], tensors: Sequence[TensorFacts]) -> str:
    rows = []
    for place, (name, size) in enumerate(parts):
        own = [tensor for tensor in tensors if tensor.kind == name]
        values = sum(tensor.num_values for tensor in own)
        stored = ", ".join(sorted({tensor.storage for tensor in own}))
        bits = f"{8 * size / values:.2f}" if values else ""
        share = f"{size / MAX_BYTES:.1%}"
        label = chip(charts.part_color(place)) + escape(name)
        rows.append((label, stored, f"{values:,}" if values else "", bits, f"{size:,.0f}", share))
    left = MAX_BYTES - sum(size for _, size in parts)
    rows.append((chip("var(--fill)") + "left", "", "", "", f"{left:,.0f}", f"{left / MAX_BYTES:.1%}"))
    head = ("part", "stored as", "values", "bits per value", "bytes", "of the cap")
    return table(head, rows, numeric=(2, 3, 4, 5))


def _samples(page: Page, artifact: Path) -> None:
    page.section("What it writes", "Continuations by the exported model, drawn with a fixed seed.")
    try:
        samples = write_samples(artifact)
    except UserError as error:
        page.add(f"<p>There is no sample: {escape(str(error))}</p>")
    else:
        texts = (
            f'<blockquote class="card"><b>{escape(sample.prompt)}</b>{escape(sample.continuation)}</blockquote>'
            for sample in samples
        )
        page.add(f'<div class="texts">{"".join(texts)}</div>')
    page.end_section()


def _settings(page: Page, record: Record) -> None:
    base, found = base_name(record), changes(record)
    if base is None:
        page.section("Settings", NO_HISTORY)
    elif not found:
        page.section("Settings", f"Every setting is that of {base}.")
    else:
        page.section("Settings", f"These differ from {base}; all others are as it has them, or defaults.")
        rows = [
            (
                f"<code>{escape(each.name)}</code>",
                *map(escape, (written(each.value), written(each.before), each.source)),
            )
            for each in found
        ]
        page.add(table(("setting", "this run", base, "set by"), rows))
    page.end_section()


def _details(page: Page, record: Record) -> None:
    summary = record.summary
    page.section("Machine and versions")
    fields = ("network", "seed", "device", "world_size", "precision", "python", "torch", "lightning")
    pairs = [(name.replace("_", " "), escape(str(summary[name]))) for name in fields if name in summary]
    pairs += [("technique", escape(str(sentence))) for sentence in summary.get("techniques", [])]
    if "command" in record.start:
        pairs.append(("command", f"<pre>cli.py {escape(command_line(record.start['command']))}</pre>"))
    pairs.append(("folder", f"<code>{escape(str(record.folder))}</code>"))
    page.add(facts(pairs))
    page.end_section()


def command_line(words: Sequence[str]) -> str:
    """A command as one would type it; settings that a packed script gives as text are left out."""
    return shlex.join("--config=(the script's)" if "\n" in word else word for word in words)
