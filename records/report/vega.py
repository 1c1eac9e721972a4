"""The script that draws the charts in a reader's browser: Vega, Vega-Lite and Vega-Embed, as one file."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from components.files import write_whole

PACKAGE = "vl-convert-python"
CACHE = Path(__file__).parents[2] / ".cache" / "report"


def vega_script() -> str:
    """The script, made once per version and kept, since that takes seconds."""
    kept = CACHE / f"vega-{version(PACKAGE)}.js"
    if kept.is_file():
        return kept.read_text()
    import vl_convert  # 80 MB, needed for this alone

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(OSError):  # a project folder that cannot be written to only costs time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, script.encode())
    return script
