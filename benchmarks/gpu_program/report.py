"""Results of the GPU program as a file's content and as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.gpu_program.chips import Backend, Chip
from benchmarks.gpu_program.program import Program
from benchmarks.gpu_program.roofline import kernel_seconds, product_seconds, program_times
from components.errors import UserError

VERSION = 2
"""Of a result: what its figures count. Version 1 counted a slice of a buffer as the whole of it."""

TOP = 12
"""Kernels that the text lists."""

PARTS = {
    "products": "matrix products",
    "attention": "attention (rate assumed)",
    "elementwise": "elementwise kernels",
    "recomputed": "sines, cosines, powers",
    "update": "clipping and optimizers",
    "all_reduce": "gradient all-reduce",
    "gather": "Muon's gather",
    "waiting_for_host": "waiting for the host",
}
"""Parts of a step by their names in a result."""


def summarize(program: Program, chip: Chip, backend: Backend) -> dict[str, Any]:
    """A program's counts and times as plain data."""
    times, ceiling = (program_times(program, chip, backend, at_ceiling) for at_ceiling in (False, True))
    return {
        "launches": program.launches,
        "kernels": len(program.kernels),
        "products": program.num_products,
        "attention_calls": sum(call.calls for call in program.attention),
        "other_calls": sum(call.calls for call in program.others),
        "gigabytes": program.bytes / 1e9,
        "launches_with_trigonometry": sum(k.launches for k in program.kernels if k.trigonometry),
        "launches_with_float64": sum(k.launches for k in program.kernels if k.float64),
        "ms": {
            "products": 1e3 * times.products,
            "products_at_ceiling": 1e3 * ceiling.products,
            "attention": 1e3 * times.attention,
            "elementwise": 1e3 * times.elementwise,
            "recomputed": 1e3 * times.recomputed,
        },
        "by_kernel": [
            {
                "name": kernel.name,
                "launches": kernel.launches,
                "bytes": kernel.bytes,
                "ms": 1e3 * kernel.launches * sum(kernel_seconds(kernel, chip)),
                "trigonometry": kernel.trigonometry,
                "powers": kernel.powers,
                "float64": kernel.float64,
            }
            for kernel in sorted(program.kernels, key=lambda k: -k.launches * sum(kernel_seconds(k, chip)))
        ],
        "by_product": [
            {
                "shape": "x".join(map(str, product.shape)),
                "calls": product.calls,
                "ms": 1e3 * product.calls * product_seconds(product.operations, product.bytes, chip),
            }
            for product in sorted(program.products, key=lambda p: -p.calls * p.operations)
        ],
    }


def read_result(file: Path) -> dict[str, Any]:
    """A result that was written before.

    Raises:
        UserError: It is none, or counts otherwise than this version.
    """
    try:
        result = json.loads(file.read_text())
        if "predicted_ms" not in result:
            raise ValueError
    except ValueError as error:
        raise UserError(f"{file} is no result of benchmarks.gpu_program; give a gpu_program-*.json.") from error
    if result.get("version") != VERSION:
        raise UserError(
            f"{file} is from another version of benchmarks.gpu_program, which counted bytes in another way; make it "
            "again, or give another."
        )
    return dict(result)


def as_json(result: Mapping[str, Any]) -> str:
    """A result as a file's text, with each innermost object, such as a kernel, in one line."""
    indented = json.dumps(result, indent=1)
    return (
        re.sub(r"\{\n([^{}]*?)\n\s*\}", lambda found: "{" + re.sub(r"\n\s*", " ", found[1]).strip() + "}", indented)
        + "\n"
    )


def programs_table(passes: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each program."""
    header = ("program", "launches", "kernels", "products", "GB", "sin/cos", "float64", "products ms", "at ceiling")
    rows = [
        (
            f"{name} {part}",
            p["launches"],
            p["kernels"],
            p["products"],
            f"{p['gigabytes']:.1f}",
            p["launches_with_trigonometry"],
            p["launches_with_float64"],
            *(f"{p['ms'][key]:.1f}" for key in ("products", "products_at_ceiling", "attention", "elementwise")),
            f"{p['ms']['recomputed']:.1f}",
        )
        for name, parts in passes.items()
        for part, p in parts.items()
    ]
    return table((*header, "attention ms", "elementwise ms", "recomputed ms"), rows)


def kernels_table(program: Mapping[str, Any]) -> str:
    """The kernels of a program that take the longest; with machine instructions where they were counted."""
    kernels = program["by_kernel"][:TOP]
    header = ["kernel", "launches", "MB", "ms", "sin/cos", "float64"]
    rows = [
        [
            _shortened(k["name"]),
            k["launches"],
            f"{k['bytes'] / 1e6:.1f}",
            f"{k['ms']:.2f}",
            k["trigonometry"],
            "yes" if k["float64"] else "",
            *k.get("instructions", {}).values(),
        ]
        for k in kernels
    ]
    if kernels and "instructions" in kernels[0]:
        header += [f"{kind} instructions" for kind in kernels[0]["instructions"]]
    return table(header, rows)


def _shortened(name: str, width: int = 80) -> str:
    return name if len(name) <= width else f"{name[: width // 2]}...{name[-width // 2 + 3 :]}"


def step_table(steps: Mapping[str, Mapping[str, float]]) -> str:
    """Predicted milliseconds of a step by part, a column for each training pass."""
    names = [*PARTS, "step", "hidden_host"]
    labels = {**PARTS, "step": "predicted step", "hidden_host": "(host, hidden)"}
    rows = [(labels[name], *(f"{step[name]:.2f}" for step in steps.values())) for name in names]
    return table(("ms", *steps), rows)


COUNTS = ("launches", "kernels", "products", "launches_with_trigonometry", "launches_with_float64")


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What changed from an earlier result, in the passes that both have."""
    rows: list[Sequence[object]] = []
    for name, parts in after["passes"].items():
        for part, new in parts.items() if name in before["passes"] else ():
            old = before["passes"][name][part]
            for key in COUNTS:
                rows.append(
                    (f"{name} {part}, {key.replace('_', ' ')}", old[key], new[key], f"{new[key] - old[key]:+d}")
                )
            rows.append(_changed(f"{name} {part}, GB", old["gigabytes"], new["gigabytes"]))
    old_launches, new_launches = (
        sum(call["launches"] for call in result["updates"]["train"]) for result in (before, after)
    )
    change = f"{new_launches - old_launches:+d}"
    rows.append(("clipping and optimizers, launches", old_launches, new_launches, change))
    for name, step in after["predicted_ms"].items():
        if name in before["predicted_ms"]:
            rows.append(_changed(f"{name}, predicted ms a step", before["predicted_ms"][name]["step"], step["step"]))
    old_rates = before["predicted_windows_per_second"]
    for name, rate in after["predicted_windows_per_second"].items():
        if name in old_rates:
            rows.append(_changed(f"{name}, predicted windows a second", old_rates[name], rate))
    return table(("", "before", "after", "change"), rows)


def _changed(label: str, before: float, after: float) -> tuple[str, str, str, str]:
    return label, f"{before:,.1f}", f"{after:,.1f}", f"{after - before:+,.1f}"
