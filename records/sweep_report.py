"""The statistics of a sweep's seeds: a table to read, and the content of ``sweep.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from records.statistics import Comparison, Sample, compare, describe


def report(results: list[dict[str, Any]], baseline: Sequence[float]) -> tuple[dict[str, Any], str]:
    """The statistics of finished seeds, as the content of ``sweep.json`` and as lines to read.

    Args:
        results: figures of each seed, at least one.
        baseline: losses of the baseline's seeds in nats; empty for no comparison.
    """
    losses, bpbs = describe([r["val_loss"] for r in results]), describe([r["val_bpb"] for r in results])
    content: dict[str, Any] = {
        "seed_results": results,
        "val_loss": losses.__dict__,
        "val_bpb": bpbs.__dict__,
    }
    lines = [
        f"{'seed':>12} {'val_loss':>10} {'val_bpb':>10} {'bytes':>12} {'train s':>9} {'scoring s':>9}",
        *(
            f"{r['seed']:>12} {r['val_loss']:>10.6f} {r['val_bpb']:>10.6f} {r['bytes_total']:>12,} "
            f"{r['wallclock_seconds']:>9.1f} {r['eval_time_seconds']:>9.1f}"
            for r in results
        ),
        f"{'mean':>12} {losses.mean:>10.6f} {bpbs.mean:>10.6f}",
        f"{'deviation':>12} {_spread(losses.deviation)} {_spread(bpbs.deviation)}",
        f"{'95% +-':>12} {_spread(losses.interval)} {_spread(bpbs.interval)}",
    ]
    if baseline:
        comparison = compare([r["val_loss"] for r in results], baseline)
        content["baseline"] = {"val_losses": list(baseline), **_facts(comparison, losses, bpbs)}
        lines += [
            f"against the baseline of {len(baseline)} seeds: {comparison.sentence()}",
            f"  that is {content['baseline']['improvement_bpb']:.6f} bits per byte, on the same text and tokenizer",
        ]
    return content, "\n".join(lines)


def _facts(comparison: Comparison, losses: Sample, bpbs: Sample) -> dict[str, Any]:
    return {
        "improvement_nats": comparison.improvement,
        "improvement_bpb": comparison.improvement * bpbs.mean / losses.mean,
        "p_better": comparison.p_better,
        "p_margin": comparison.p_margin,
        "rule_holds": comparison.holds,
        "why_not": comparison.why_not,
    }


def _spread(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.6f}"
