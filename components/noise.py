"""What libraries print that says nothing of a run."""

from __future__ import annotations

import logging
import warnings

UNWANTED_LINES = (
    "\N{ELECTRIC LIGHT BULB} Tip:",  # Lightning, for its own services
    "TPU available:",
)
UNWANTED_WARNINGS = (
    "LightningCLI's args parameter",  # which this project means to use
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.13
)
_format_of_others = warnings.formatwarning


def quiet_libraries() -> None:
    """Leave out lines and warnings of libraries about which a user can do nothing, and where a plain warning is from.

    The project warns of a run, in sentences; the line of its source says nothing to a user.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)
    for message in UNWANTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = _formatted


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(UNWANTED_LINES)


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if category is UserWarning and "-packages" not in filename:  # not from an installed package
        return f"warning: {message}\n"
    return _format_of_others(message, category, filename, lineno, line)
