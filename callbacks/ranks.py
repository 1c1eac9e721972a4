"""What becomes of a run when one of its ranks is lost, and what ranks tell each other without a collective.

Notes between ranks go through the store where the ranks met. A note needs no answer, so a rank can leave one, or look
for one, whatever the others are doing.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import Stage, find
from components.errors import LostRankError, UserError

STEP_TIMEOUT = timedelta(seconds=50)
"""How long a rank waits for the others between training steps, where healthy ranks wait for a moment."""
PHASE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits in setup, warm-up, calibration and export, where healthy ranks may take minutes longer."""
ABORT_AFTER = timedelta(seconds=10)
"""What NCCL waits in addition: it ends the process without a sentence, so it comes second."""
STORE_SECONDS = 5.0
"""How long the store may take to answer: its host may be gone."""
SETTLE_SECONDS = 0.5
"""How long a dying process takes to close all its connections: the store's may be the last."""
CHILD_SECONDS = 0.5
"""How often rank 0 looks at the processes that it started."""
GRACE_SECONDS = 8.0
"""How long rank 0 may go on after one of its processes has failed, since it may be failing for the same reason."""
FILE_SECONDS = 30.0
"""How long an ending process waits for a checkpoint that is being written."""

Answer = TypeVar("Answer")
_children: list[subprocess.Popen[bytes]] = []


class Ranks(Callback):
    """Set how long ranks wait for each other, and turn the loss of one into one sentence.

    It must be called after the clock, which starts when every rank is ready.
    """

    stage = Stage.SCHEDULE

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for a moment from now on."""
        _set_timeout(find(trainer, Clock), STEP_TIMEOUT)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for minutes again, for calibration and export."""
        _set_timeout(find(trainer, Clock), PHASE_TIMEOUT)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Explain an error that torch raises when ranks do not work together.

        Raises:
            LostRankError: A rank is gone or does not answer. Raising it here keeps Lightning from tearing down, which
                would wait for a device that waits for the lost rank.
            UserError: A weight got no gradient.
        """
        lost = _lost(exception)
        if lost is not None:
            time.sleep(SETTLE_SECONDS)
            raise LostRankError(f"{lost}; {_how_to_go_on(trainer)}.") from exception
        idle = _without_gradient(exception, pl_module)
        if idle:
            raise UserError(
                f"{', '.join(idle)} got no gradient, and several ranks cannot train such a weight; use it in every "
                "forward pass, or remove it."
            ) from exception


def post(name: str) -> None:
    """Leave a note for every rank."""
    if dist.is_initialized():
        _ask(lambda: _store().set(name, "1"), None)


def posted(name: str) -> bool:
    """Whether a rank has left this note."""
    return dist.is_initialized() and _ask(lambda: bool(_store().check([name])), False)


def wait_for(name: str, seconds: float) -> None:
    """Wait for a note, but not longer than this."""
    deadline = time.monotonic() + seconds
    while not posted(name) and time.monotonic() < deadline:
        time.sleep(0.05)


def speaks() -> bool:
    """Whether this rank is the first that has something to say about the run's end, so that it is said once.

    Before the ranks have met, and where the store is gone, one rank of each node speaks.
    """
    local_rank = _number("LOCAL_RANK", "SLURM_LOCALID")
    if not dist.is_initialized():
        return local_rank == 0
    # The store lives on the first node, in rank 0 unless a launcher keeps it: without it, that rank is the lost one.
    speaker = 1 if _number("GROUP_RANK", "NODE_RANK", "SLURM_NODEID") == 0 else 0
    return (
        _ask(lambda: _store().add("ending", 1) == 1, local_rank == speaker) if _has_store() else local_rank == speaker
    )


def watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Watch the processes that Lightning started on this node, instead of Lightning's own observer.

    Lightning's kills this process as soon as one of them ends with an error, without a word, and while it may be
    saving.
    """
    _children[:] = processes
    threading.Thread(target=_watch, daemon=True, name="rank-watch").start()


def replace_observer() -> None:
    """Let `watch` be what Lightning's launcher starts."""
    subprocess_script._launch_process_observer = watch  # type: ignore[assignment]


def separate_restarts() -> None:
    """Give every start of the ranks by torchrun a part of its store of its own.

    torchrun keeps its store when it restarts the ranks, and a rank would take another's old address for the new one.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if restarts is None:
        return
    # Imported by its path: torch.distributed has a function of the same name.
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    create = rendezvous._create_c10d_store

    def created(*args: Any, **settings: Any) -> dist.Store:
        return dist.PrefixStore(f"start {restarts}", create(*args, **settings))

    rendezvous._create_c10d_store = created


def tell_children(signum: int) -> None:
    """Send a signal to the processes of this node that Lightning started; on other ranks there are none."""
    for process in _children:
        process.send_signal(signum)


def end_children(seconds: float) -> None:
    """Let those processes end by themselves for so long, and then kill them."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in _children) and time.monotonic() < deadline:
        time.sleep(0.05)
    tell_children(signal.SIGKILL)


def leave(code: int) -> NoReturn:
    """End the process without waiting for other ranks or the device, which may wait for a lost one."""
    tell_children(signal.SIGKILL)
    for thread in threading.enumerate():
        if not thread.daemon and thread not in (threading.main_thread(), threading.current_thread()):
            thread.join(FILE_SECONDS)  # it is writing a checkpoint
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch() -> None:
    while not (lost := {rank: process.returncode for rank, process in enumerate(_children, 1) if process.poll()}):
        if all(process.returncode == 0 for process in _children):
            return
        time.sleep(CHILD_SECONDS)
    time.sleep(GRACE_SECONDS)
    [(rank, code), *_] = lost.items()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if speaks():
        sentence = (
            f"Local rank {rank} {how}, and the run with it; to go on, give the same command with --ckpt_path last."
        )
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    leave(1)


def _number(*variables: str) -> int:
    """The first of these environment variables that a launcher has set; 0 without a launcher."""
    return next((int(os.environ[name]) for name in variables if name in os.environ), 0)


def _lost(error: BaseException) -> str | None:
    """What happened to another rank, if that is what the error is about."""
    text = str(error)
    if isinstance(error, LostRankError):
        return f"A rank was lost: {text}"
    if "gloo/transport" in text:
        return "A rank did not answer in time" if "Timed out" in text else "A rank closed its connections and is lost"
    if isinstance(error, dist.DistError):
        return f"A rank was lost ({text.splitlines()[0]})"
    return None


def _without_gradient(error: BaseException, pl_module: LightningModule) -> list[str]:
    """The weights that DistributedDataParallel found without a gradient."""
    found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
    trained = [name.removeprefix("network.") for name, p in pl_module.named_parameters() if p.requires_grad]
    return [] if found is None else [trained[int(i)] for i in found[1].split()]


def _how_to_go_on(trainer: Trainer) -> str:
    return find(trainer, Checkpoints).how_to_go_on()


def _set_timeout(clock: Clock, timeout: timedelta) -> None:
    """Set how long collectives of every group wait."""
    if not dist.is_initialized():
        return
    clock.patience = timeout.total_seconds()
    # torch has no public function for this; it has had this one, documented as if it were, since 2.1.
    abort_after = ABORT_AFTER if dist.get_backend() == "nccl" else timedelta()
    dist.distributed_c10d._set_pg_timeout(timeout + abort_after)
    dist.distributed_c10d._set_pg_timeout(timeout, clock.group)


def _has_store() -> bool:
    """Whether the store's host still answers; asking a dead one makes torch print a stack trace."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(address, STORE_SECONDS).close()
    except OSError:
        return False
    return True


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _ask(question: Callable[[], Answer], otherwise: Answer) -> Answer:
    """Ask the store, in a thread: where its host is gone, it may not answer at all."""
    answers: list[Answer] = []

    def ask() -> None:
        try:
            answers.append(question())
        except RuntimeError:
            answers.append(otherwise)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return answers[0] if answers else otherwise
