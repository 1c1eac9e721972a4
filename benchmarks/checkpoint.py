"""What checkpoints cost a run: ``python -m benchmarks.checkpoint``.

The demo's network trains through the command line with a checkpoint every 20 s, and the 10 s after each checkpoint are
paired with the 10 s before it: the steps that fit into them say what one checkpoint every 10 s costs. The hook of the
steady steps is timed too. For the rungs of the ladder the cost on a GPU is arithmetic: the state's bytes over the
speeds of its memory and of the bus.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from lightning.pytorch import Callback, LightningModule, Trainer

import cli
from benchmarks.common import device_name, save, table
from callbacks.checkpoint import Checkpoints
from callbacks.clock import Clock
from callbacks.common import find
from components.gpt import GPT, GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer
from datamodules.corpus import build_corpus

DATA = Path(".cache/demo")
WINDOW = 10.0  # seconds
PAIRS = 8
VOCABULARIES = {
    "record_10l": 1024,
    "record_11l_ema": 1024,
    "record_sp4096": 4096,
    "record_sp8192_loop": 8192,
    "record_sp8192_ttt": 8192,
    "record_sp8192_gates": 8192,
}
MEMORY_RATE = 3e12  # bytes per second that an H100 reads or writes
BUS_RATE = 25e9  # bytes per second over PCIe from pinned memory, somewhat under generation 4's 32


class Probe(Callback):
    """Note when each step ends, when a checkpoint begins, and how long the hook of each step takes."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        self.begun: list[float] = []
        self.steady: list[float] = []
        self.pauses: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time the hook of the checkpoints."""
        checkpoints, clock = find(trainer, Checkpoints), find(trainer, Clock)
        hook = checkpoints.on_train_batch_end

        def timed(*args: Any) -> None:
            saved_at, start = checkpoints._saved_at, time.perf_counter()
            hook(*args)
            seconds = time.perf_counter() - start
            self.ends.append(clock.elapsed)
            if checkpoints._saved_at == saved_at:
                self.steady.append(seconds)
            else:
                self.begun.append(clock.elapsed)
                self.pauses.append(seconds)

        checkpoints.on_train_batch_end = timed  # type: ignore[method-assign, assignment]

    @property
    def shares(self) -> list[float]:
        """For each checkpoint, the share of the 10 s after it by which steps were slower than in the 10 s before it."""
        return [
            1 - self._steps(begun, begun + WINDOW) / self._steps(begun - WINDOW, begun)
            for begun in self.begun
            if begun + WINDOW <= self.ends[-1]
        ]

    def _steps(self, start: float, end: float) -> float:
        """Steps between two times, with the fractions of the first and the last."""
        ends = [0.0, *self.ends]
        return sum(
            max(0.0, min(b, end) - max(a, start)) / (b - a)
            for a, b in itertools.pairwise(ends)
            if b > start and a < end
        )


def measure(runs: str) -> tuple[Probe, int]:
    """The probe of a fit, and the bytes of its checkpoint."""
    settings = {
        "clock.max_seconds": WINDOW * (2 * PAIRS + 1.5),
        "checkpoint.every_seconds": 2 * WINDOW,
        "trainer.default_root_dir": runs,
        "trainer.val_check_interval": 1_000_000,
        "trainer.enable_progress_bar": "false",
        # The average is part of the state from the start on, and every window trains alike.
        "averaging": "ExponentialMean",
        "late_qat.start_fraction": 1,
    }
    arguments = ["fit", "--config", "configs/record_10l.yaml", "--config", "configs/demo.yaml"]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    trainer = cli.main([*arguments, f"--trainer.callbacks+={Probe.__module__}.Probe"]).trainer
    newest = find(trainer, Checkpoints).newest
    assert newest is not None
    return find(trainer, Probe), newest.stat().st_size


def state_of(rung: str) -> tuple[int, int]:
    """Bytes and number of tensors of a rung's state: weights, their optimizer state, and an average of them."""
    settings = yaml.safe_load((Path("configs") / f"{rung}.yaml").read_text())["model"]
    network = {name: value for name, value in settings.items() if name in GPTConfig.__dataclass_fields__}
    with torch.device("meta"):
        model = GPT(GPTConfig(**{**network, "vocab_size": VOCABULARIES[rung], "bos_id": 1}))
    groups = build_optimizer(model, OptimizerConfig()).param_groups
    num_bytes = num_tensors = 0
    for group in groups:
        copies = 3 if "momentum" in group else 4  # Muon has one moment, AdamW two
        num_bytes += copies * sum(4 * p.numel() for p in group["params"])
        num_tensors += copies * len(group["params"])
    return num_bytes, num_tensors


def main() -> None:
    """Measure, print, save."""
    build_corpus(DATA)
    with tempfile.TemporaryDirectory() as runs:
        probe, num_bytes = measure(runs)
    share, pause, steady = median(probe.shares), median(probe.pauses), median(probe.steady)
    print(f"{num_bytes / 1e6:.1f} MB a checkpoint, {len(probe.shares)} pairs of {WINDOW:.0f} s, {device_name()}")
    rows = [
        ("time of a run with one every 10 s", f"{share:.2%}"),
        ("the step that begins one waits", f"{1000 * pause:.1f} ms"),
        ("a steady step", f"{1e6 * steady:.0f} us"),
    ]
    print(table(("checkpoints cost", ""), rows))
    rungs = {rung: state_of(rung) for rung in VOCABULARIES}
    print(
        table(
            ("by arithmetic, on an H100", "state, MB", "tensors", "copy, ms", "bus, ms"),
            [
                (rung, f"{size / 1e6:.0f}", count, f"{_copy_ms(size):.2f}", f"{_bus_ms(size):.1f}")
                for rung, (size, count) in rungs.items()
            ],
        )
    )
    save(
        "checkpoint",
        {
            "checkpoint_bytes": num_bytes,
            "shares": probe.shares,
            "pause_seconds": probe.pauses,
            "steady_seconds": steady,
            "rungs": {
                rung: {"state_bytes": size, "copy_ms": _copy_ms(size), "bus_ms": _bus_ms(size)}
                for rung, (size, _) in rungs.items()
            },
        },
    )


def _copy_ms(num_bytes: int) -> float:
    """Milliseconds of a copy within the GPU's memory, which reads and writes every byte."""
    return 1000 * 2 * num_bytes / MEMORY_RATE


def _bus_ms(num_bytes: int) -> float:
    return 1000 * num_bytes / BUS_RATE


if __name__ == "__main__":
    main()
