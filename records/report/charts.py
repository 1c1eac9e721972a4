"""The charts, as Vega-Lite specifications. Colors are the page's CSS variables, so they follow its light or dark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from components.artifact import MAX_BYTES
from records.report.model_facts import TensorFacts
from records.report.record import Entry, Record

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

COLORS = [f"var(--color-{number})" for number in range(1, 9)]
SHADES = [f"var(--shade-{number})" for number in range(1, 6)]
MOST_POINTS = 1500
"""Longer curves are drawn by every second step, every third, and so on."""
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
"""The page's; a chart measures its labels in it."""
SHORT: Spec = {"labelExpr": "format(datum.value, '~s')"}
"""An axis of large numbers."""
TOKENS = ",.0f"
BINS = 150
OUTLIER = 1.5
"""A step that takes this many times the run's median is an outlier."""
MOST_OUTLIERS = 200

CONFIG: Spec = {
    "background": "transparent",
    "view": {"stroke": None},
    "font": FONT,
    "axis": {
        "domain": False,
        "tickColor": "var(--rule)",
        "gridColor": "var(--rule)",
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 6,
        "tickSize": 4,
    },
    "axisX": {"grid": False, "tickCount": 6, "labelFlush": True},
    "axisY": {"ticks": False, "tickCount": 5},
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "var(--text)",
        "labelFontSize": 12,
        "symbolSize": 90,
        "symbolStrokeWidth": 2,
        "columns": {"signal": "max(1, floor(width / 110))"},
        "columnPadding": 16,
        "labelLimit": 200,
        "offset": 10,
    },
    "range": {"category": COLORS},
    "line": {"strokeWidth": 1.8, "strokeJoin": "round", "strokeCap": "round"},
}
"""What all charts share."""


class Scale:
    """A run's horizontal axis: seconds of training if all runs have a budget of them, otherwise steps."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.field = "elapsed" if all(record.budget_seconds for record in records) else "step"
        self.title = "seconds of training" if self.field == "elapsed" else "optimizer step"

    def __call__(self, entry: Entry) -> float:
        """Where a line of the history stands."""
        return float(entry[self.field])

    @property
    def axis(self) -> Spec:
        """The encoding."""
        return {"field": "x", "type": "quantitative", "title": self.title, "scale": {"nice": False}}


def loss_chart(record: Record) -> Spec | None:
    """Training loss over the phases, with validations and the exported file's score; None if no step was logged."""
    x = Scale([record])
    losses = _metric_rows(record, x, "loss/train", "training loss")
    if not losses:
        return None
    scores = [
        {"x": x(entry), "y": entry["val_loss"], "bpb": entry["val_bpb"], "step": entry["step"], "what": "validation"}
        for entry in record.of("score")
    ]
    if record.is_fit and "val_loss" in record.summary:
        facts = record.summary
        end = x({"elapsed": facts["wallclock_seconds"], "step": facts["step_stop"]})
        scores.append({"x": end, "y": facts["val_loss"], "bpb": facts["val_bpb"], "step": facts["step_stop"]})
        scores[-1]["what"] = "exported file"
    phases = phase_spans(record, x)
    names = list(dict.fromkeys(span["phase"] for span in phases))
    y = {"field": "y", "type": "quantitative", "title": "nats per token", "scale": _loss_scale([*losses, *scores])}
    tooltip = [_tip("what", ""), _tip("step", "step", ","), _tip("x", x.title, ",.1f"), _tip("y", "nats", ".4f")]
    shading = {
        "data": {"values": phases},
        "mark": {"type": "rect", "opacity": 1},
        "encoding": {
            "x": {**x.axis, "field": "start"},
            "x2": {"field": "end"},
            "fill": {
                "field": "phase",
                "type": "nominal",
                "scale": {"domain": names, "range": SHADES},
                "legend": {"symbolType": "square", "symbolStrokeColor": "var(--quiet)", "symbolStrokeWidth": 0.5},
            },
            "tooltip": [_tip("phase", "phase"), _tip("step", "from step", ",")],
        },
    }
    kinds = ["training loss", "validation", "exported file"]
    series = {"field": "what", "type": "nominal", "scale": {"domain": kinds, "range": COLORS}}
    curve = {
        "data": {"values": losses},
        "mark": {"type": "line", "clip": True},
        "encoding": {"x": x.axis, "y": y, "color": series},
    }
    marks = {
        "data": {"values": scores},
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
        "encoding": {
            "x": x.axis,
            "y": y,
            "color": series,
            "shape": {
                "field": "what",
                "type": "nominal",
                "scale": {"domain": kinds, "range": ["stroke", "circle", "diamond"]},
            },
            "tooltip": [*tooltip, _tip("bpb", "bits per byte", ".4f")],
        },
    }
    return _chart([shading, curve, _touch(losses, x, y, tooltip), *([marks] if scores else [])], height=320)


def phase_spans(record: Record, x: Scale) -> Rows:
    """When each phase began and ended, as far as the logged steps tell."""
    spans: Rows = []
    for entry in record.steps:
        if spans and spans[-1]["phase"] == entry["phase"]:
            spans[-1]["end"] = x(entry)
        else:
            begin = spans[-1]["end"] if spans else 0.0
            spans.append({"phase": entry["phase"], "start": begin, "end": x(entry), "step": entry["step"]})
    return spans


def rates_chart(record: Record) -> Spec | None:
    """Every learning rate."""
    x = Scale([record])
    tags = [tag for tag in _tags(record) if tag.startswith("lr/")]
    rows = [row for tag in tags for row in _metric_rows(record, x, tag, tag.removeprefix("lr/"))]
    return _lines(rows, x, "learning rate", height=220, tip_format=".3g")


def momentum_chart(record: Record) -> Spec | None:
    """Muon's momentum."""
    x = Scale([record])
    return _lines(_metric_rows(record, x, "momentum", "momentum"), x, "momentum", height=220, legend=False)


def speed_chart(record: Record) -> Spec | None:
    """Tokens a second."""
    x = Scale([record])
    rows = _metric_rows(record, x, "speed/tokens_per_second", "tokens per second")
    return _lines(rows, x, "tokens per second", height=220, legend=False, tip_format=TOKENS, zero=True)


def step_durations(record: Record) -> Rows:
    """Every optimizer step, its duration in milliseconds and its place on the axis."""
    x = Scale([record])
    rows: Rows = []
    for entry in record.steps:
        durations = entry["step_seconds"]
        ends = x(entry)
        for index, seconds in enumerate(durations):
            later = len(durations) - 1 - index
            place = ends - sum(durations[index + 1 :]) if x.field == "elapsed" else ends - later
            rows.append({"x": place, "y": 1000 * seconds, "step": entry["step"] - later})
    return rows


def step_time_chart(record: Record) -> Spec | None:
    """The middle step's duration, the range of nine in ten, and the outliers."""
    x, rows = Scale([record]), step_durations(record)
    if not rows:
        return None
    width = math.ceil(len(rows) / BINS)
    bands = []
    for start in range(0, len(rows), width):
        group = rows[start : start + width]
        ordered = sorted(row["y"] for row in group)
        low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
        bands.append({"x": group[-1]["x"], "low": low, "y": statistics.median(ordered), "high": high})
    median = statistics.median(row["y"] for row in rows)
    slow = sorted((row for row in rows if row["y"] > OUTLIER * median), key=lambda row: -row["y"])[:MOST_OUTLIERS]
    is_wide = max(row["y"] for row in rows) > 5 * median
    scale = {"type": "log", "nice": True} if is_wide else {"zero": False, "nice": True}
    y = {"field": "y", "type": "quantitative", "title": "ms per step", "scale": scale}
    tooltip = [_tip("x", x.title, ",.1f"), _tip("y", "median, ms", ",.1f"), _tip("high", "19 in 20 below", ",.1f")]
    band = {
        "data": {"values": bands},
        "mark": {"type": "area", "opacity": 0.18, "color": COLORS[0]},
        "encoding": {"x": x.axis, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
    }
    line = {
        "data": {"values": bands},
        "mark": {"type": "line", "color": COLORS[0]},
        "encoding": {"x": x.axis, "y": y},
    }
    points = {
        "data": {"values": slow},
        "mark": {"type": "point", "filled": True, "size": 28, "color": COLORS[1], "opacity": 0.9},
        "encoding": {"x": x.axis, "y": y, "tooltip": [_tip("step", "step", ","), _tip("y", "ms", ",.1f")]},
    }
    return _chart([band, line, _touch(bands, x, y, tooltip), *([points] if slow else [])], height=220)


def bytes_chart(parts: Sequence[tuple[str, float]]) -> Spec:
    """Where the bytes under the cap go, as one bar.

    Args:
        parts: Names and bytes, in order; the page's table has the same colors.
    """
    names = [name for name, _ in parts]
    rows = [{"part": name, "bytes": size, "order": place} for place, (name, size) in enumerate(parts)]
    most = max(MAX_BYTES, sum(size for _, size in parts))
    bar = {
        "data": {"values": rows},
        "mark": {"type": "bar", "height": 34},
        "encoding": {
            "x": {
                "field": "bytes",
                "type": "quantitative",
                "stack": "zero",
                "title": "bytes",
                "scale": {"domain": [0, most], "nice": False},
                "axis": SHORT,
            },
            "color": {
                "field": "part",
                "type": "nominal",
                "scale": {"domain": names, "range": [part_color(place) for place in range(len(names))]},
                "legend": None,
            },
            "order": {"field": "order"},
            "tooltip": [_tip("part", ""), _tip("bytes", "bytes", ",.0f")],
        },
    }
    cap = {
        "data": {"values": [{"bytes": MAX_BYTES}]},
        "mark": {"type": "rule", "color": "var(--text)", "strokeWidth": 1.5},
        "encoding": {"x": {"field": "bytes", "type": "quantitative"}},
    }
    return _chart([bar, cap], height=56)


def part_color(place: int) -> str:
    """The color of a part of the bytes."""
    return COLORS[place % len(COLORS)]


def error_chart(tensors: Sequence[TensorFacts]) -> Spec | None:
    """How far each matrix is from its float weights, by layer; None if those are not at hand or nothing is rounded."""
    known = [tensor for tensor in tensors if tensor.error and len(tensor.shape) == 2]
    rounded = [tensor for tensor in known if tensor.storage != "float16"] or known
    rows: Rows = [
        {
            "layer": "outside" if tensor.layer is None else str(tensor.layer),
            "role": _role(tensor),
            "error": tensor.error,
            "tensor": tensor.name,
            "storage": tensor.storage,
        }
        for tensor in rounded
    ]
    if not rows:
        return None
    layers = sorted({tensor.layer for tensor in rounded if tensor.layer is not None})
    order = ["outside", *map(str, layers)] if any(tensor.layer is None for tensor in rounded) else [*map(str, layers)]
    encoding = {
        "x": {"field": "layer", "type": "ordinal", "sort": order, "title": "layer", "axis": {"labelAngle": 0}},
        "y": {
            "field": "error",
            "type": "quantitative",
            "title": "relative error",
            "scale": {"zero": True, "nice": True},
            "axis": {"format": ".2~%"},
        },
        "color": {"field": "role", "type": "nominal", "sort": None},
        "tooltip": [_tip("tensor", "tensor"), _tip("storage", "stored as"), _tip("error", "relative error", ".3%")],
    }
    mark = {"type": "line", "strokeWidth": 1, "opacity": 0.6, "point": {"filled": True, "size": 46, "opacity": 1}}
    return _chart([{"mark": mark, "encoding": encoding}], rows, height=280)


def codes_chart(tensors: Sequence[TensorFacts], chooser: str) -> Spec:
    """A histogram of one tensor's codes.

    Args:
        tensors: The tensors to choose from.
        chooser: Id of the element in which the reader chooses.
    """
    rows = [
        {"t": tensor.name, "a": round(start, 6), "b": round(end, 6), "n": count}
        for tensor in tensors
        for start, end, count in zip(tensor.edges, tensor.edges[1:], tensor.counts, strict=False)
    ]
    largest = max(tensors, key=lambda tensor: (tensor.storage != "float16", tensor.num_values))
    names = [tensor.name for tensor in tensors]
    labels = [f"{tensor.name} ({tensor.storage}, {_shape(tensor)})" for tensor in tensors]
    bars = {
        "mark": {"type": "bar", "color": COLORS[0], "binSpacing": 1},
        "transform": [{"filter": "datum.t === tensor"}],
        "encoding": {
            "x": {"field": "a", "type": "quantitative", "bin": {"binned": True}, "title": "code (float16: value)"},
            "x2": {"field": "b"},
            "y": {"field": "n", "type": "quantitative", "title": "weights", "axis": SHORT},
            "tooltip": [_tip("a", "from", "~g"), _tip("b", "to", "~g"), _tip("n", "weights", ",")],
        },
    }
    bind = {"input": "select", "options": names, "labels": labels, "name": "", "element": f"#{chooser}"}
    # A layer's own parameter would be renamed, and the filter would not find it.
    return {**_chart([bars], rows, height=240), "params": [{"name": "tensor", "value": largest.name, "bind": bind}]}


def overlay_chart(records: Sequence[Record], names: Sequence[str], tag: str, title: str) -> Spec | None:
    """One metric of several runs over each other."""
    x = Scale(records)
    rows = [row for record, name in zip(records, names, strict=True) for row in _metric_rows(record, x, tag, name)]
    if tag == "loss/train":
        return _lines(rows, x, title, height=320, y_scale=_loss_scale(rows)) if rows else None
    return _lines(rows, x, title, height=220, tip_format=TOKENS if tag == "speed/tokens_per_second" else ".4f")


def scores_chart(records: Sequence[Record], names: Sequence[str]) -> Spec | None:
    """Several runs' validations over each other, and their exported files' scores."""
    x = Scale(records)
    rows: Rows = []
    for record, name in zip(records, names, strict=True):
        rows += [
            {"x": x(entry), "y": entry["val_bpb"], "what": name, "step": entry["step"]} for entry in record.of("score")
        ]
        facts = record.summary
        if record.is_fit and "val_bpb" in facts:
            end = x({"elapsed": facts["wallclock_seconds"], "step": facts["step_stop"]})
            rows.append({"x": end, "y": facts["val_bpb"], "what": name, "step": facts["step_stop"]})
    return _lines(rows, x, "bits per byte", height=260, points=True, y_scale=_loss_scale(rows)) if rows else None


def sizes_chart(names: Sequence[str], parts: Sequence[dict[str, float]]) -> Spec | None:
    """Several runs' bytes by kind, one bar each."""
    kinds = list(dict.fromkeys(kind for each in parts for kind in each))
    rows = [
        {"run": name, "part": kind, "bytes": size, "order": kinds.index(kind)}
        for name, each in zip(names, parts, strict=True)
        for kind, size in each.items()
    ]
    if not rows:
        return None
    encoding = {
        "y": {"field": "run", "type": "nominal", "title": None, "sort": list(names), "axis": {"labelLimit": 120}},
        "x": {"field": "bytes", "type": "quantitative", "title": "bytes", "axis": SHORT},
        "color": {"field": "part", "type": "nominal", "sort": kinds},
        "order": {"field": "order"},
        "tooltip": [_tip("run", "run"), _tip("part", ""), _tip("bytes", "bytes", ",.0f")],
    }
    return _chart([{"mark": {"type": "bar", "height": 18}, "encoding": encoding}], rows, height=30 * len(names) + 10)


def _lines(
    rows: Rows,
    x: Scale,
    title: str,
    height: int,
    *,
    legend: bool = True,
    points: bool = False,
    tip_format: str = ".4f",
    zero: bool = False,
    y_scale: Spec | None = None,
) -> Spec | None:
    if not rows:
        return None
    y = {"field": "y", "type": "quantitative", "title": title, "scale": y_scale or {"zero": zero, "nice": True}}
    if tip_format == TOKENS:
        y["axis"] = SHORT
    color: Spec = {"field": "what", "type": "nominal", "sort": None}
    if not legend:
        color["legend"] = None
    tooltip = [_tip("what", ""), _tip("step", "step", ","), _tip("x", x.title, ",.1f"), _tip("y", title, tip_format)]
    mark = {"type": "line", "clip": True, "point": {"filled": True, "size": 40} if points else False}
    line = {"mark": mark, "encoding": {"x": x.axis, "y": y, "color": color}, "data": {"values": rows}}
    return _chart([line, _touch(rows, x, y, tooltip)], height=height)


def _chart(layers: list[Spec], rows: Rows | None = None, *, height: int) -> Spec:
    spec: Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
        "config": CONFIG,
    }
    return spec if rows is None else {**spec, "data": {"values": rows}}


def _touch(rows: Rows, x: Scale, y: Spec, tooltip: list[Spec]) -> Spec:
    """Invisible points along a line, which show its values."""
    return {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0, "clip": True},
        "encoding": {"x": x.axis, "y": y, "tooltip": tooltip},
    }


def _tip(field: str, title: str, number_format: str | None = None) -> Spec:
    if number_format is None:
        return {"field": field, "type": "nominal", "title": title}
    return {"field": field, "type": "quantitative", "title": title, "format": number_format}


def _metric_rows(record: Record, x: Scale, tag: str, what: str) -> Rows:
    rows = [
        {"x": round(x(entry), 3), "y": value, "step": entry["step"], "what": what}
        for entry in record.steps
        if (value := entry["metrics"].get(tag)) is not None
    ]
    return rows[:: math.ceil(len(rows) / MOST_POINTS) or 1]


def _tags(record: Record) -> list[str]:
    return list(dict.fromkeys(tag for entry in record.steps for tag in entry["metrics"]))


def _loss_scale(rows: Rows) -> Spec:
    """A range without the fall of the first steps, which would leave the rest flat."""
    values = [row["y"] for row in rows if row["y"] is not None]
    later = sorted(values[len(values) // 20 :])
    low, high = later[0], later[-1 - len(later) // 50]
    margin = 0.05 * (high - low) or 0.1
    return {"domain": [low - margin, high + margin], "nice": False, "zero": False}


def _role(tensor: TensorFacts) -> str:
    name = tensor.name.removesuffix(".weight")
    return name if tensor.layer is None else name.split(".", 2)[2]


def _shape(tensor: TensorFacts) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"
