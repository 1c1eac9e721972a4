"""The comparison as Markdown tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.ladder.compare import Comparison, verdict
from benchmarks.ladder.variants import BATCH_TOKENS, RECIPE, RECIPE_NETWORK, VARIANTS
from docs.pictures import BLUE, GRAY, ORANGE, svg
from records.statistics import Sample


def written(difference: Sample) -> str:
    """A difference with its interval."""
    return f"{difference.mean:+.4f} ± {difference.interval or 0:.4f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is left-aligned and whose others are right-aligned."""
    rule = ("---", *("---:",) * (len(header) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def technique_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """One row per technique."""
    return [
        (
            one.variant.name
            if one.variant.against == RECIPE
            else f"{one.variant.name} (against {one.variant.against})",
            one.variant.published or "none alone",
            one.variant.visible,
            written(one.at_steps),
            verdict(one.at_steps),
            f"{one.step_ratio:.2f}",
            written(one.in_time),
            verdict(one.in_time),
            f"{one.bytes_model:,.0f}",
        )
        for one in comparisons
    ]


def rung_rows(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """One row per rung."""
    return [
        (
            one.variant.name,
            one.variant.published,
            f"{float(one.variant.published) - float(VARIANTS[RECIPE].published):+.4f}",
            f"{one.bits_per_byte:.4f}",
            written(one.at_steps),
            f"{one.step_ratio:.2f}",
            str(one.steps_in_time),
            written(one.in_time),
            f"{one.bytes_model:,.0f}",
        )
        for one in comparisons
    ]


def tables(
    rungs: Sequence[Comparison], techniques: Sequence[Comparison], *, steps: int, num_seeds: int, bytes_scored: int
) -> str:
    """Both tables, with what a reader needs to know of them."""
    config = RECIPE_NETWORK
    intro = (
        f"Networks of {config.num_layers} layers of width {config.model_dim}, {steps} steps of {BATCH_TOKENS} tokens, "
        f"{bytes_scored:,} bytes scored. Differences in bits per byte of the exported file, negative if better, paired "
        f"over {num_seeds} seeds, with 95% intervals by Student's t (n = {num_seeds}). In the recipe's time: after as "
        f"many steps as fit in the time of the recipe's {steps}, by the ratio of step times measured in turn in one "
        "process; a ratio within 5% of 1 counts as 1."
    )
    caution = (
        "The published gains are those of the full size: 27 to 36 million parameters after 5,000 to 7,000 steps of "
        "786,432 tokens. The third column says, from before any of this was measured, whether a run of this size could "
        "show them: most are of a few thousandths, and of long training. Not shown means that the interval holds zero, "
        "not that there is no gain. Of so many intervals, one or two miss the truth by chance. No technique was tuned."
    )
    return "\n\n".join(
        [
            intro,
            markdown(
                (
                    "technique, added to the recipe",
                    "published",
                    "can it show",
                    f"after {steps} steps",
                    "so",
                    "step time",
                    "in the recipe's time",
                    "so",
                    "file, bytes",
                ),
                technique_rows(techniques),
            ),
            caution,
            markdown(
                (
                    "rung",
                    "published score",
                    "minus the recipe's",
                    f"here, after {steps} steps",
                    "minus the recipe's",
                    "step time",
                    "steps in the recipe's time",
                    "then minus the recipe's",
                    "file, bytes",
                ),
                rung_rows(rungs),
            ),
        ]
    )


def picture(rungs: Sequence[Comparison], techniques: Sequence[Comparison], steps: int) -> bytes:
    """Differences with their intervals, techniques above and rungs below, as SVG."""
    shown = [one for one in rungs if one.variant.name != RECIPE]
    sizes = (len(techniques), len(shown))
    figure = Figure(figsize=(9.5, 1.6 + 0.27 * sum(sizes)), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[size + 1 for size in sizes])
    _draw(above, sorted(techniques, key=lambda one: one.at_steps.mean), steps)
    _draw(below, shown, steps)
    above.set_title("one technique added to the recipe", color=GRAY, fontsize=10)
    below.set_title("whole rungs (published score)", color=GRAY, fontsize=10)
    below.set_xlabel("bits per byte minus the recipe's: left of the line is better")
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
    return svg(figure)


def _draw(axes: Axes, comparisons: Sequence[Comparison], steps: int) -> None:
    budgets = (
        (-0.14, "o", BLUE, f"after {steps} steps", [one.at_steps for one in comparisons]),
        (0.14, "s", ORANGE, "in the recipe's time", [one.in_time for one in comparisons]),
    )
    for offset, marker, color, label, differences in budgets:
        axes.errorbar(
            [one.mean for one in differences],
            [row + offset for row in range(len(differences))],
            xerr=[one.interval or 0 for one in differences],
            fmt=marker,
            color=color,
            markersize=4,
            linewidth=1.2,
            label=label,
        )
    axes.axvline(0, color=GRAY, linewidth=1)
    axes.set_yticks(range(len(comparisons)), [_label(one) for one in comparisons], fontsize=8.5)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


def _label(one: Comparison) -> str:
    variant = one.variant
    if variant.config != "record_10l":
        return f"{variant.name} ({variant.published})"
    return variant.name if variant.against == RECIPE else f"{variant.name} (against {variant.against})"
