"""The baseline's losses, given as numbers or read from a sweep's or a submission's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import UserError
from records.runs import read_json


def baseline_losses(words: Sequence[str]) -> list[float]:
    """Losses in nats, one per seed, from the arguments of ``--baseline``.

    Args:
        words: numbers, or the path of one ``sweep.json`` or ``submission.json``.

    Raises:
        UserError: the arguments are neither, or the file has no loss.
    """
    try:
        return [float(word) for word in words]
    except ValueError:
        pass
    remedy = "give --baseline a sweep.json, a submission.json or losses in nats"
    if len(words) != 1:
        raise UserError(f"--baseline {' '.join(words)} is neither numbers nor one file; {remedy}.")
    return losses_of(read_json(Path(words[0]), remedy), words[0])


def losses_of(content: dict[str, Any], name: str) -> list[float]:
    """The seeds' losses in the content of a ``sweep.json`` or ``submission.json``.

    Raises:
        UserError: it has none.
    """
    results = content.get("seed_results")
    if isinstance(results, dict):
        results = list(results.values())
    listed = [entry.get("val_loss") for entry in results or () if isinstance(entry, dict)] or [content.get("val_loss")]
    if not all(isinstance(loss, float | int) for loss in listed):
        raise UserError(
            f"{name} does not give a val_loss for each seed; give the baseline's losses in nats as numbers."
        )
    return [float(loss) for loss in listed if loss is not None]
