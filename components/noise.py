"""What libraries print that says nothing of a run."""

from __future__ import annotations

import logging
import warnings

UNWANTED_LINES = (
    "\N{ELECTRIC LIGHT BULB} Tip:",  # Lightning, for its own services
    "TPU available:",
)
UNWANTED_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 on torch 2.13
)


def quiet_libraries() -> None:
    """Leave out lines and warnings of libraries about which a user can do nothing."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)
    for message in UNWANTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(UNWANTED_LINES)
