"""A first run on a person's own text: the three commands that configs/laptop.yaml gives, as they stand there."""

import json
import shlex
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from components.artifact import read_artifact
from tests.support import ROOT, run, summary_of

# Small enough for a test; everything else is as the overlay has it.
SMALLER = {
    "model.num_layers": 2,
    "model.model_dim": 64,
    "model.num_heads": 2,
    "clock.max_seconds": 0,
    "trainer.max_steps": 30,
    "trainer.val_check_interval": 10,
    "trainer.enable_progress_bar": "false",
    "data.train_batch_tokens": 512,
    "scoring.max_tokens": 1000,
}


def commands() -> list[list[str]]:
    """The commands in the comment at the head of the overlay, without ``python``."""
    comment = [line[1:] for line in (ROOT / "configs" / "laptop.yaml").read_text().splitlines() if line[:1] == "#"]
    joined = "\n".join(comment).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in joined.splitlines() if line.strip().startswith("python ")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder like the project's, whose data and runs are the test's own, with a text of 400 kB."""
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "my.txt").write_text("\n\n".join(text for _, text in sorted(topics.items())))
    return tmp_path


def test_three_commands_lead_from_a_text_to_a_model_that_writes(home: Path) -> None:
    prepare, fit, generate = commands()
    prepared = run(*prepare, folder=home)
    assert prepared.returncode == 0, prepared.stderr
    settings = prepared.stdout.splitlines()[-1].removeprefix("give to fit: ")
    assert settings == " ".join(fit[-4:])  # nothing to think about between the first command and the second

    fitted = run(*fit, *(f"--{name}={value}" for name, value in SMALLER.items()), folder=home)
    assert fitted.returncode == 0, fitted.stderr
    summary = summary_of(home / "runs" / "laptop")
    assert summary["step_stop"] == 30
    assert summary["qat_steps"] > 0
    assert summary["snapshots_averaged"] > 0
    assert summary["warmdown_start_step"] == 16  # at 15 the last half of the steps begins, with the whole rate
    assert "never" not in fitted.stdout + fitted.stderr  # no phase was missed

    written = run(*generate, "--max-tokens=20", folder=home)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("It was")
    assert len(written.stdout) > len("It was\n")
    artifact = read_artifact(home / generate[2])
    assert artifact.settings is not None
    assert artifact.settings["vocab_size"] == json.loads((home / "data/mine/manifest.json").read_text())["vocab_size"]
