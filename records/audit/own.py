"""This project's own code in a child of the audit: read a script as text, or load an artifact.

    python -I own.py read SCRIPT
    python -I own.py load ARTIFACT
    python -I own.py score ARGUMENTS...

``read`` and ``load`` write result.json in the current folder; ``score`` runs ``cli.py`` with the arguments. None of the
audited script runs here, so results come from this project alone.
"""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def read(script: Path) -> dict[str, object]:
    """The script's text, settings and hints, or why it cannot be read."""
    from records.audit.hints import read_hints
    from records.audit.script_text import NeedsNewerPythonError, Unreadable, imported_names, read_script

    try:
        text = read_script(script.read_bytes())
    except Unreadable as error:
        return {"why_not": str(error), "newer": isinstance(error, NeedsNewerPythonError)}
    hints = [dataclasses.asdict(hint) for hint in read_hints(text.texts, text.settings)]
    lengths = {name: len(part.encode(errors="replace")) for name, part in text.texts.items()}
    imports = sorted(set().union(*map(imported_names, text.texts.values())))
    found = {"settings": dict(text.settings), "packed": text.packed, "lengths": lengths}
    return {**found, "hints": hints, "imports": imports}


def load(artifact: Path) -> dict[str, object]:
    """What an artifact contains, or why it cannot be read, such as shapes unlike those of the network it describes."""
    from components.errors import UserError
    from components.gpt import check_shapes, config_of, shapes_of
    from components.model_files import read_any_artifact
    from components.quantization import load_state

    try:
        found = read_any_artifact(artifact)
        state = load_state(found.tensors)
        if found.settings is not None:
            check_shapes(shapes_of(config_of(found.settings, str(artifact))), state, str(artifact))
    except UserError as error:
        return {"why_not": " ".join(str(error).split())}
    num_params = sum(weight.numel() for weight in state.values())
    return {"settings": found.settings, "num_tensors": len(state), "num_params": num_params}


def main(job: str, *words: str) -> None:
    """Run a job."""
    sys.path.insert(0, str(PROJECT))
    if job == "score":
        sys.argv = [str(PROJECT / "cli.py"), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        result = {"read": read, "load": load}[job](Path(*words))
        Path("result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
