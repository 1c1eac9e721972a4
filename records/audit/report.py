"""Format an audit as text, JSON or an HTML page."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from records.audit.verdicts import State, Verdict

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
td { overflow-wrap: anywhere; }
.FAIL { color: #b00020; font-weight: bold; }
.pass { color: #1b6e3c; }
.look { color: #8a5a00; font-weight: bold; }
.could { color: #666; }
"""


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """What matters first: counts, failures, where to look, and what could not be checked and why."""
    counts = Counter(verdict.state for verdict in verdicts)
    lines = [", ".join(f"{counts[state]} {state}" for state in (State.FAIL, State.PASS, State.LOOK, State.UNKNOWN))]
    lines += [f"FAIL: {verdict.name}: {verdict.detail}" for verdict in verdicts if verdict.state == State.FAIL]
    looks = [verdict.name.removeprefix("look: ") for verdict in verdicts if verdict.state == State.LOOK]
    lines += [f"look here: {', '.join(looks)}"] if looks else []
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.state == State.UNKNOWN:
            reasons.setdefault(verdict.detail, []).append(verdict.name)
    return lines + [f"could not check: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def as_text(folder: str, contained: str, verdicts: Sequence[Verdict]) -> str:
    """The summary, then one line per verdict."""
    rows = [f"{v.name:<36} {v.state:<16} {v.word:<11} {v.detail}" for v in verdicts]
    head = f"{'line':<36} {'verdict':<16} {'by':<11} why"
    return (
        "\n".join([f"{folder}: {summary(verdicts)[0]}", *summary(verdicts)[1:], "", contained, "", head, *rows]) + "\n"
    )


def as_json(folder: str, contained: str, verdicts: Sequence[Verdict]) -> str:
    """The same for tools: the summary lines, counts by state, and every verdict's fields."""
    counts = Counter(verdict.state for verdict in verdicts)
    content = {
        "folder": folder,
        "summary": summary(verdicts),
        "counts": {state: counts[state] for state in State},
        "contained": contained,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }
    return json.dumps(content, indent=2) + "\n"


def as_page(folder: str, contained: str, verdicts: Sequence[Verdict]) -> str:
    """The same for people, as one self-contained file."""
    rows = "\n".join(
        f'<tr><td>{html.escape(v.name)}</td><td class="{v.state.split()[0]}">{v.state}</td><td>{v.word}</td>'
        f"<td>{html.escape(v.detail)}</td></tr>"
        for v in verdicts
    )
    lines = "\n".join(f"<li>{html.escape(line)}</li>" for line in summary(verdicts))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Audit of {html.escape(folder)}</title>
<style>{_STYLE}</style>
<h1>Audit of {html.escape(folder)}</h1>
<ul>
{lines}
</ul>
<p>{html.escape(contained)}</p>
<table>
<tr><th>line</th><th>verdict</th><th>by</th><th>why</th></tr>
{rows}
</table>
</html>
"""
