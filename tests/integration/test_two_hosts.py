"""A rehearsal with two hosts: the losses of one host, a cut cable, and a restart (``make rehearsal``)."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hosts import Host, two_hosts, why_not
from tests.support import fit_arguments, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

NUM_STEPS = 120
PATIENCE = 80.0
"""Seconds within which both ranks must have given up: the time-out between steps, and time to end."""


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


def arguments(data: Path, runs: Path, **settings: Any) -> list[str]:
    """A small fit of the record's configuration, with a rank on each of two hosts."""
    small = fit_arguments(
        data,
        runs,
        **{
            "trainer.max_steps": NUM_STEPS,
            "trainer.num_nodes": 2,
            "trainer.log_every_n_steps": 10,
            "trainer.val_check_interval": 10_000,
            "model.model_dim": 64,
            "model.num_heads": 2,
            "data.train_micro_batches": 2,
            "schedule.warmdown_steps": 60,
            "checkpoint.every_seconds": 1,
            **settings,
        },
    )
    return ["fit", "--config=configs/record_10l.yaml", "--config=configs/cpu.yaml", "--model.compile=false", *small[1:]]


def outcome(runs: Path) -> tuple[dict[str, Any], list[str]]:
    """The summary of the run that finished, and the losses in its log."""
    [summary] = runs.rglob("summary.json")
    log = (summary.parent / "train.log").read_text()
    return json.loads(summary.read_text()), re.findall(r"^step (\d+ train_loss \S+)", log, re.MULTILINE)


def on_both(hosts: tuple[Host, Host], words: list[str], logs: Path) -> list[subprocess.Popen[bytes]]:
    logs.mkdir()
    return [host.start_rank(hosts[0], words, logs / f"{n}.log") for n, host in enumerate(hosts)]


def text_of(logs: Path) -> list[str]:
    return [path.read_text(errors="replace") for path in sorted(logs.iterdir())]


def checkpoint_appears(runs: Path, processes: list[subprocess.Popen[bytes]], within: float) -> None:
    deadline = time.monotonic() + within
    while not list(runs.rglob("step_*.ckpt")):
        assert time.monotonic() < deadline, "there was no checkpoint in time"
        assert all(process.poll() is None for process in processes), "a rank ended before the first checkpoint"
        time.sleep(0.1)


def sentences_of(logs: Path, within: float) -> list[str]:
    """The one sentence with which each rank ends."""
    deadline = time.monotonic() + within
    while True:
        found = [re.findall(r"^error: .*rank.*", text, re.MULTILINE) for text in text_of(logs)]
        if all(found):
            assert all(len(sentences) == 1 for sentences in found)
            return [sentence for [sentence] in found]
        assert time.monotonic() < deadline, text_of(logs)
        time.sleep(0.5)


def test_two_hosts_train_as_one_and_a_cut_cable_costs_only_a_restart(
    data_folder: Path, tmp_path: Path, hosts: tuple[Host, Host]
) -> None:
    one = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "cli.py"),
        *arguments(data_folder, tmp_path / "one", **{"trainer.num_nodes": 1, "trainer.devices": 2}),
        timeout=300,
    )
    assert one.returncode == 0, one.stderr
    alone, losses = outcome(tmp_path / "one")
    assert len(losses) == NUM_STEPS // 10

    words = arguments(data_folder, tmp_path / "two")
    processes = on_both(hosts, words, tmp_path / "whole")
    assert [process.wait(300) for process in processes] == [0, 0], text_of(tmp_path / "whole")
    summary, two_losses = outcome(tmp_path / "two")
    assert summary["world_size"] == 2
    assert two_losses == losses
    assert summary["val_bpb"] == pytest.approx(alone["val_bpb"], abs=1e-6)

    words = arguments(data_folder, tmp_path / "cut")
    processes = on_both(hosts, words, tmp_path / "broken")
    checkpoint_appears(tmp_path / "cut", processes, within=120)
    hosts[1].unplug()
    sentences = sentences_of(tmp_path / "broken", within=PATIENCE)
    assert all("--ckpt_path last" in sentence for sentence in sentences)
    for process in processes:
        process.kill()  # torchrun itself waits longer for a host that is gone, whatever it is told
        assert process.wait(60) != 0
    assert not list((tmp_path / "cut").rglob("summary.json"))

    hosts[1].plug_in()
    processes = on_both(hosts, [*words, "--ckpt_path=last"], tmp_path / "again")
    assert [process.wait(300) for process in processes] == [0, 0], text_of(tmp_path / "again")
    resumed, _ = outcome(tmp_path / "cut")
    assert resumed["interruptions"] == 1
    assert resumed["val_bpb"] == pytest.approx(summary["val_bpb"], abs=1e-6)
