"""The protocol by which a technique reports itself, the order of callbacks, and that observers know no technique."""

import ast
import contextlib
import importlib
import inspect
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import (
    Event,
    Reporter,
    Stage,
    announce,
    ends_step,
    find,
    in_order,
    mean_over_ranks,
    phase_of,
    reporters,
    stage_of,
    starts_step,
)
from callbacks.export import Export
from callbacks.late_qat import LateQAT
from callbacks.monitor import Monitor
from callbacks.schedule import Schedule
from callbacks.signals import Signals
from callbacks.warmup import CompileWarmup
from cli import main
from tests.callbacks.support import trainer_of
from tests.callbacks.toy import Toy, Undeclared
from tests.support import NARROW, ROOT, FinishedRun, Terminal, fit_arguments, marks_of, scalars_of, summary_of

TOY = "tests.callbacks.toy.Toy"
# Late QAT fakes matrices of any width, if they are not so small as to be float16.
STORAGE = "[{names: blocks.*.mlp.*.weight, storage: int5, qat: true}, {names: '*', storage: float16}]"
OBSERVERS = [f"callbacks/{name}.py" for name in ("monitor", "run_log", "progress", "warmup", "summary")]


def _rank(rank: int, world_size: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    dist.barrier = None  # type: ignore[assignment] # not to be called
    mine = torch.tensor([float(rank), 10.0 * rank])
    assert mean_over_ranks(mine).tolist() == [0.5, 5.0]
    assert mine.tolist() == [float(rank), 10.0 * rank]
    dist.destroy_process_group()


def test_the_mean_over_ranks_is_each_value_s_and_makes_no_rank_wait_first() -> None:
    assert mean_over_ranks(torch.tensor(3.0)) == 3.0  # one process
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, (2, port), nprocs=2)


class InPhase(Reporter):
    def __init__(self, name: str | None) -> None:
        self.name = name

    def phase(self, trainer: Any) -> str | None:
        return self.name


class Listener(Callback):
    def __init__(self) -> None:
        self.heard: list[Event] = []

    def on_event(self, trainer: Any, event: Event) -> None:
        self.heard.append(event)


def test_callbacks_come_by_stage_and_within_one_as_given() -> None:
    checkpoint, plain, toy, observer, export = ModelCheckpoint(), Undeclared(), Toy(), Monitor(), Export()
    late_qat, schedule, clock, warmup = LateQAT(), Schedule(), Clock(), CompileWarmup()
    given = [checkpoint, plain, export, toy, observer, late_qat, schedule, clock, warmup]
    expected = [warmup, clock, schedule, toy, late_qat, export, plain, observer, checkpoint]
    assert in_order(given) == expected
    assert in_order([*given[5:], *given[:5]]) == [*expected[:3], late_qat, toy, *expected[5:]]


def test_an_event_reaches_every_listener_and_no_other_callback() -> None:
    listeners = Listener(), Listener()
    announce(trainer_of([listeners[0], Undeclared(), Clock(), listeners[1]]), "some tag", "It happened.")
    assert [listener.heard for listener in listeners] == [[Event("some tag", "It happened.")]] * 2


@pytest.mark.parametrize(
    ("phases", "shown"),
    [([], "training"), ([None], "training"), (["one", None], "one"), (["one", "other", None], "other")],
)
def test_of_several_phases_the_last_shows(phases: list[str | None], shown: str) -> None:
    assert phase_of(trainer_of([InPhase(phase) for phase in phases])) == shown


def test_a_reporter_says_nothing_by_itself() -> None:
    silent = Reporter()
    trainer = trainer_of([Undeclared(), silent])
    assert list(reporters(trainer)) == [silent]
    assert stage_of(silent) is Stage.TECHNIQUE
    said = [silent.metrics(trainer), silent.summary(trainer), silent.missed(trainer), silent.describe(trainer)]
    assert not any([*said, silent.phase(trainer), silent.variants(trainer, None)])


def test_a_run_has_one_callback_of_a_kind() -> None:
    clock = Clock()
    assert find(trainer_of([Undeclared(), clock]), Clock) is clock
    for callbacks in ([], [Clock(), Clock()]):
        with pytest.raises(AssertionError, match=f"a run must have one Clock, this one has {len(callbacks)}"):
            find(trainer_of(callbacks), Clock)


@pytest.mark.parametrize(("accumulation", "starts", "ends"), [(1, [0, 1, 2, 3], [0, 1, 2, 3]), (3, [0, 3], [2])])
def test_a_step_starts_and_ends_with_its_micro_batches(accumulation: int, starts: list[int], ends: list[int]) -> None:
    trainer = SimpleNamespace(accumulate_grad_batches=accumulation)
    assert [i for i in range(4) if starts_step(trainer, i)] == starts
    assert [i for i in range(4) if ends_step(trainer, i)] == ends


def techniques() -> set[str]:
    """The project's modules that define a technique."""
    modules = {f"callbacks.{file.stem}" for file in (ROOT / "callbacks").glob("*.py") if file.stem != "__init__"}
    return {
        name
        for name in modules
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if kind.__module__ == name and issubclass(kind, Reporter) and kind is not Reporter
        if kind.stage is Stage.TECHNIQUE
    }


@pytest.mark.parametrize("file", [*OBSERVERS, "records/pack.py"])
def test_observers_import_no_technique(file: str) -> None:
    assert techniques() >= {"callbacks.late_qat", "callbacks.averaging"}
    forbidden = techniques() | {"components.averages"}
    imported = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert imported & forbidden == set()


@pytest.fixture(scope="module")
def toy_run(_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run with a technique that the program does not know, and two other callbacks of a user's, in a bad order."""
    folder = tmp_path_factory.mktemp("toy") / "runs"
    settings = {
        **NARROW,
        "export.storage": STORAGE,
        "warmup.steps": 4,
        "scoring.val_stride": 32,
        "trainer.enable_progress_bar": "true",
    }
    listed = ("tests.callbacks.toy.Undeclared", TOY)
    arguments = [*fit_arguments(_corpus, folder, **settings), *(f"--trainer.callbacks+={path}" for path in listed)]
    stdout = Terminal()
    missed = pytest.warns(UserWarning, match="A phase never came: the toy never ended")
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(Terminal()), missed:
        cli = main(arguments)
    return FinishedRun(cli, folder, stdout.getvalue(), _corpus)


def test_a_technique_shows_in_tensorboard(toy_run: FinishedRun) -> None:
    assert scalars_of(toy_run.folder, "toy/on") == {step: float(step > 3) for step in range(1, 13)}
    assert marks_of(toy_run.folder, "toy") == {3: "the toy began at step 3"}


def test_a_technique_shows_in_the_log(toy_run: FinishedRun) -> None:
    lines = (toy_run.logs / "train.log").read_text().splitlines()
    where = lines.index("the toy began at step 3")
    assert lines[where - 1].startswith("step 3 ")
    assert lines[where + 1].startswith("step 4 ")


def test_a_technique_shows_in_the_progress_bar(toy_run: FinishedRun) -> None:
    lines = toy_run.stdout.replace("\n", "\r").split("\r")
    assert any(line.startswith("toy phase") and " 4/12 steps" in line for line in lines)
    assert any(line.startswith("late QAT") and " 10/12 steps" in line for line in lines)  # a later reporter's


def test_a_technique_shows_in_the_summary(toy_run: FinishedRun) -> None:
    summary = summary_of(toy_run.folder)
    assert summary["toy_start_step"] == 3
    assert "the toy never ended" in summary["phases_missed"]
    assert "A toy was played with." in summary["techniques"]


def test_warmup_runs_every_form_of_the_network_once(toy_run: FinishedRun) -> None:
    toy = find(toy_run.cli.trainer, Toy)
    assert sorted(toy.trained) == [(False, False), (False, True), (True, False), (True, True)]
    # Validations never see fake quantization; at a stride under the window, batches are of 1 and of 8 windows.
    assert sorted(toy.scored) == [(False, False, 1), (False, False, 8), (True, False, 1), (True, False, 8)]


def test_fewer_warmup_steps_than_forms_are_refused(data_folder: Path, tmp_path: Path) -> None:
    arguments = fit_arguments(data_folder, tmp_path, **NARROW, **{"warmup.steps": 3})
    with pytest.raises(SystemExit) as exit:
        main([*arguments, f"--trainer.callbacks+={TOY}"])
    assert exit.value.code == (
        "error: warmup.steps is 3, and the run has 4 graphs to compile, with and without the toy and late QAT; set it "
        "to 0 for none or to at least 4."
    )


def test_the_callbacks_that_a_user_lists_stand_in_their_stages(toy_run: FinishedRun) -> None:
    callbacks = toy_run.cli.trainer.callbacks
    assert [stage_of(callback) for callback in callbacks] == sorted(stage_of(callback) for callback in callbacks)
    assert isinstance(callbacks[-2], Checkpoints)
    assert isinstance(callbacks[-1], Signals)  # ends the run, once all is saved
    names = [type(callback).__name__ for callback in callbacks]
    assert names.index("Schedule") < names.index("Toy") < names.index("Monitor")
    assert names.index("Averaging") < names.index("Undeclared")


def test_a_run_without_averaging_and_late_qat_is_a_run(data_folder: Path, tmp_path: Path) -> None:
    settings = {**NARROW, "averaging": "null", "late_qat.start_fraction": 1, "warmup.steps": 1}
    arguments = [a for a in fit_arguments(data_folder, tmp_path, **settings) if not a.startswith("--averaging.")]
    cli = main(arguments)
    summary = summary_of(tmp_path)
    assert summary["phases_missed"] == []
    assert summary["step_stop"] == 12
    assert "snapshots_averaged" not in summary
    assert summary["val_bpb"] == pytest.approx(summary["pre_quant_val_bpb"], rel=1e-3)
    log = (tmp_path / "lightning_logs" / "version_0" / "train.log").read_text()
    assert "stopped at step 12" in log
    assert "late QAT" not in log
    assert len(scalars_of(tmp_path, "loss/train")) == 12
    assert phase_of(cli.trainer) == "warm-down"
