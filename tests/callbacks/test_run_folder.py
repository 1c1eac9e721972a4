"""Each run has a folder of its own, and an unfinished one is found again."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks.run_folder import CHECKPOINTS, LOCK, RunFolder, last_checkpoint
from components.errors import UserError
from components.run_files import RUNS_NAME, SUMMARY_NAME
from tests.support import ROOT

CONFIG: dict[str, Any] = {"seed_everything": 1, "model": {"num_layers": 2}, "ckpt_path": None}

CLAIM = """
import sys
from pathlib import Path
from callbacks.run_folder import RunFolder
print("ready", flush=True)
input()
folder = RunFolder(Path(sys.argv[1]))
print(folder.save_dir, flush=True)
input()
"""


class Process:
    """Another process that claims a folder and holds it."""

    def __init__(self, runs: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-c", CLAIM, str(runs)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.read() == "ready"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    processes = [Process(tmp_path) for _ in range(3)]
    for process in processes:
        process.go()
    folders = [process.read() for process in processes]
    for process in processes:
        process.end()
    assert sorted(folders) == [str(tmp_path / RUNS_NAME / f"version_{n}") for n in range(3)]


def test_a_folder_that_is_there_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / RUNS_NAME / "version_4").mkdir(parents=True)
    (tmp_path / RUNS_NAME / "version_notes").mkdir()
    assert RunFolder(tmp_path).save_dir == str(tmp_path / RUNS_NAME / "version_5")
    assert RunFolder(tmp_path).save_dir == str(tmp_path / RUNS_NAME / "version_6")


def test_a_claim_between_the_look_and_the_creation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def overtaken(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "version_0":
            make(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    assert RunFolder(tmp_path).save_dir == str(tmp_path / RUNS_NAME / "version_1")


def test_other_ranks_claim_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)
    folder = RunFolder(tmp_path)
    _ = folder.save_dir
    assert list(tmp_path.iterdir()) == []


def test_a_runs_folder_that_takes_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"runs folder .*file cannot take a run .*trainer.default_root_dir"):
        _ = RunFolder(tmp_path / "file").save_dir


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make the folder of a run that its process has left."""

    def make(
        version: int, steps: tuple[int, ...], finished: bool = False, origin: Path | None = None, **config: Any
    ) -> Path:
        run = tmp_path / RUNS_NAME / f"version_{version}"
        (run / CHECKPOINTS).mkdir(parents=True)
        (run / LOCK).touch()
        (run / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **config, "ckpt_path": origin and str(origin)}))
        for step in steps:
            (run / CHECKPOINTS / f"step_{step}.ckpt").touch()
        if finished:
            (run / SUMMARY_NAME).touch()
        return run

    return make


def test_the_last_checkpoint_is_the_newest_of_the_unfinished_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    make_run(0, (12,), finished=True)
    run = make_run(1, (9, 10))
    make_run(2, (11,), seed_everything=2)
    make_run(3, (11,), model={"num_layers": 3})
    make_run(4, ())
    (tmp_path / RUNS_NAME / "version_4" / "config.yaml").write_text("model: {num_lay")  # killed while it wrote
    assert last_checkpoint(tmp_path, CONFIG) == run / CHECKPOINTS / "step_10.ckpt"
    assert last_checkpoint(tmp_path, {**CONFIG, "ckpt_path": "last"}) == run / CHECKPOINTS / "step_10.ckpt"


def test_several_unfinished_runs_are_named(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    runs = make_run(0, (5,)), make_run(1, (7, 9))
    with pytest.raises(UserError, match="There are 2 unfinished runs of this configuration and seed") as error:
        last_checkpoint(tmp_path, CONFIG)
    assert f"{runs[0] / CHECKPOINTS / 'step_5.ckpt'}, {runs[1] / CHECKPOINTS / 'step_9.ckpt'}" in str(error.value)


@pytest.mark.parametrize("finished", [True, False])
def test_without_an_unfinished_run_there_is_no_last(
    finished: bool, tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    if finished:
        make_run(0, (12,), finished=True)
    with pytest.raises(UserError, match="no unfinished run with a checkpoint of this configuration and seed"):
        last_checkpoint(tmp_path, CONFIG)


def test_a_run_that_another_has_gone_on_from_is_not_unfinished(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    first = make_run(0, (5,))
    second = make_run(1, (), origin=first / CHECKPOINTS / "step_5.ckpt")
    assert last_checkpoint(tmp_path, CONFIG) == first / CHECKPOINTS / "step_5.ckpt"  # the second came nowhere
    (second / CHECKPOINTS / "step_8.ckpt").touch()
    assert last_checkpoint(tmp_path, CONFIG) == second / CHECKPOINTS / "step_8.ckpt"
    make_run(2, (12,), finished=True, origin=second / CHECKPOINTS / "step_8.ckpt")
    with pytest.raises(UserError, match="no unfinished run"):
        last_checkpoint(tmp_path, CONFIG)


def test_a_run_that_is_alive_is_not_gone_on_from(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.go()
    run = Path(process.read())
    (run / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (run / CHECKPOINTS).mkdir()
    (run / CHECKPOINTS / "step_3.ckpt").touch()
    with pytest.raises(UserError, match="no unfinished run"):
        last_checkpoint(tmp_path, CONFIG)
    process.end()
    assert last_checkpoint(tmp_path, CONFIG) == run / CHECKPOINTS / "step_3.ckpt"
