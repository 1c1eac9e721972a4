"""What a setting of the export trades: the bytes of the file against its bits per byte."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from components.artifact import MAX_BYTES
from components.files import write_user_file

_LONGEST_LABEL = 32
_NEAR_THE_CAP = 0.9


@dataclass(frozen=True)
class Choice:
    """What one value of the setting gave.

    Attributes:
        value: the value, as it was written.
        path: the artifact.
        num_bytes: its length.
        bits_per_byte: its score.
    """

    value: str
    path: Path
    num_bytes: int
    bits_per_byte: float

    @property
    def label(self) -> str:
        """The value in at most 32 characters."""
        return self.value if len(self.value) <= _LONGEST_LABEL else f"{self.value[: _LONGEST_LABEL - 3]}..."


def trade_table(setting: str, choices: Sequence[Choice], float_bits_per_byte: float) -> str:
    """A line for each value, and one for the float weights.

    Args:
        setting: the setting's dotted name.
        choices: what its values gave.
        float_bits_per_byte: the score of the float weights.
    """
    floats = "float weights"
    width = max(len(floats), *(len(choice.label) for choice in choices))
    lines = [setting, f"{'value':<{width}}  {'bytes':>10}  {'bits per byte':>13}  {'over float':>10}  file"]
    for choice in choices:
        over = choice.bits_per_byte - float_bits_per_byte
        lines.append(
            f"{choice.label:<{width}}  {choice.num_bytes:>10,}  {choice.bits_per_byte:>13.6f}  {over:>+10.6f}  "
            f"{choice.path}"
        )
    return "\n".join([*lines, f"{floats:<{width}}  {'':>10}  {float_bits_per_byte:>13.6f}"])


def draw_trade(setting: str, choices: Sequence[Choice], float_bits_per_byte: float, path: Path) -> None:
    """Write a PNG of bits per byte by bytes, with the float weights' score, and with the cap if it is near.

    Args:
        setting: the setting's dotted name.
        choices: what its values gave.
        float_bits_per_byte: the score of the float weights.
        path: where the picture goes.

    Raises:
        UserError: the picture cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(choices, key=lambda choice: choice.num_bytes)
    axes.plot([c.num_bytes for c in ordered], [c.bits_per_byte for c in ordered], marker="o", linewidth=1)
    for choice in ordered:
        place = (choice.num_bytes, choice.bits_per_byte)
        axes.annotate(choice.label, place, xytext=(6, 6), textcoords="offset points")
    axes.axhline(float_bits_per_byte, color="gray", linestyle="--", linewidth=1, label="float weights")
    if ordered[-1].num_bytes > _NEAR_THE_CAP * MAX_BYTES:
        axes.axvline(MAX_BYTES, color="firebrick", linestyle="--", linewidth=1, label="cap of artifact and code")
    axes.set(xlabel="bytes of the artifact", ylabel="bits per byte", title=setting)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_user_file(path, picture.getvalue())
