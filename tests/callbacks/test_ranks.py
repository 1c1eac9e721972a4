"""What ranks wait for and say when one of them is lost; two real processes where that takes two."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies.launchers import subprocess_script

from callbacks import ranks
from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.ranks import Ranks
from components.errors import LostRankError, UserError
from components.gpt import GPT
from tests.callbacks.support import trainer_of
from tests.support import ROOT, run, tiny_network

PAIR = """
import json, os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from callbacks import ranks
from callbacks.clock import Clock

rank, store, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["LOCAL_RANK"] = str(rank)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
clock, said = Clock(max_seconds=1), {}
clock.group = dist.new_group(backend="gloo")
if case == "timeout":
    ranks._set_timeout(clock, timedelta(seconds=1))
    said["patience"] = clock.patience
    dist.barrier()
    if rank == 1:
        time.sleep(4)
    for name, group in (("all", None), ("hosts", clock.group)):
        try:
            dist.all_reduce(torch.zeros(1), group=group)
        except RuntimeError as error:
            said[name] = ranks._lost(error)
elif case == "death":
    dist.barrier()
    if rank == 1:
        os._exit(9)
    try:
        dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        said["all"] = ranks._lost(error)
elif case == "gradient":
    network = torch.nn.ModuleDict({"used": torch.nn.Linear(1, 1), "idle": torch.nn.Linear(1, 1)})
    network.forward = lambda x: network["used"](x)
    ddp = torch.nn.parallel.DistributedDataParallel(network)
    try:
        for _ in range(2):
            ddp(torch.ones(1, 1)).sum().backward()
    except RuntimeError as error:
        said["idle"] = ranks._without_gradient(error, network)
else:
    if rank == 0:
        ranks.post("a note")
    ranks.wait_for("a note", 30)
    said["posted"] = [ranks.posted("a note"), ranks.posted("another")]
print(json.dumps(said), flush=True)
os._exit(0)
"""


def pair(case: str, tmp_path: Path) -> list[dict[str, Any] | None]:
    """What each of two ranks says; None from one that died."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(rank), str(tmp_path / "store"), case],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [json.loads(output) if output else None for output in outputs]


def test_a_rank_that_does_not_come_is_lost_when_the_time_is_over(tmp_path: Path) -> None:
    late = "A rank did not answer in time"
    said = pair("timeout", tmp_path)[0]
    assert said == {"patience": 1.0, "all": late, "hosts": late}


def test_a_rank_that_has_died_is_lost_at_once(tmp_path: Path) -> None:
    assert pair("death", tmp_path)[0] == {"all": "A rank closed its connections and is lost"}


def test_weights_without_a_gradient_are_named(tmp_path: Path) -> None:
    assert [said and said["idle"] for said in pair("gradient", tmp_path)] == [["idle.weight", "idle.bias"]] * 2


def test_a_note_reaches_the_other_rank(tmp_path: Path) -> None:
    assert pair("note", tmp_path) == [{"posted": [True, False]}] * 2


def test_a_lost_rank_is_explained_with_the_way_to_go_on() -> None:
    trainer = trainer_of([Checkpoints()])
    with pytest.raises(LostRankError) as error:
        Ranks().on_exception(trainer, Mock(), LostRankError("a step did not end within 50 s"))
    assert str(error.value) == "A rank was lost: a step did not end within 50 s; nothing was saved, so start again."
    with pytest.raises(LostRankError, match="NCCL timed out"):
        Ranks().on_exception(trainer, Mock(), dist.DistBackendError("NCCL timed out\nand much more"))


def test_other_errors_are_left_alone() -> None:
    module = Mock(named_parameters=list)
    Ranks().on_exception(trainer_of(), module, RuntimeError("out of memory"))
    Ranks().on_exception(trainer_of(), module, UserError("a wrong setting"))


def test_ranks_wait_for_a_moment_in_training_and_for_minutes_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(ranks, "_set_timeout", lambda clock, timeout: waits.append(timeout.total_seconds()))
    trainer = trainer_of([Clock(max_seconds=1)])
    Ranks().on_train_start(trainer, Mock())
    Ranks().on_train_end(trainer, Mock())
    assert waits == [50.0, 1800.0]


def test_before_ranks_have_met_one_of_each_node_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.speaks()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not ranks.speaks()


def test_rank_0_ends_when_a_process_that_it_started_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, subprocess, sys, time\n"
        "from callbacks import ranks\n"
        "ranks.GRACE_SECONDS = 0.1\n"
        "children = [subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']) for _ in range(2)]\n"
        "ranks.watch(children)\n"
        "children[1].send_signal(signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    result = run("-c", program, timeout=50)
    assert result.returncode == 1
    assert result.stderr == (
        "error: Local rank 2 was killed by SIGKILL, and the run with it; to go on, give the same command with "
        "--ckpt_path last.\n"
    )


def test_the_observer_that_lightning_starts_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", subprocess_script._launch_process_observer)
    assert "_launch_process_observer" in subprocess_script._SubprocessScriptLauncher.launch.__code__.co_names
    ranks.replace_observer()
    assert subprocess_script._launch_process_observer is ranks.watch


@pytest.mark.parametrize("gates", [False, True])
def test_every_weight_of_a_network_of_one_layer_that_asks_for_a_gradient_gets_one(gates: bool) -> None:
    network: GPT = tiny_network(num_layers=1, skip_gates=gates)
    ids = torch.arange(16).view(1, 16)
    network(ids, ids).sum().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
