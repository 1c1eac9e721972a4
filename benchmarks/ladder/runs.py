"""Runs of ``fit``, two at a time, each with its steps timed beside the recipe's; finished ones are kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml  # type: ignore[import-untyped] # stubs would be one more thing to install
from lightning.pytorch import Callback, LightningModule, Trainer

import cli
from benchmarks.common import TrainingStep
from benchmarks.ladder.variants import BATCH_TOKENS, RECIPE_NETWORK, SEQ_LEN, Settings, Variant, run_settings
from callbacks.common import find, phase_of
from components.files import write_whole
from components.gpt import GPT
from components.optimizer import OptimizerConfig, build_optimizer
from components.run_files import SUMMARY_NAME

ROOT = Path(__file__).parents[2]
RUNS = Path("runs/ladder")
EVERY = 10
"""Steps from one timed step to the next."""


class Pace(Callback):
    """Time some steps of a fit, each next to a step of the recipe's network in the same process.

    The two meet the same background load, so their ratio hardly depends on it. A step lasts until the next one begins,
    so that it includes what all other callbacks do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ratios: dict[str, list[float]] = {}
        """Of the timed steps, by the run's phase in them."""
        self._started: float | None = None
        self._phase = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the other network, leaving the random numbers of the run alone."""
        with torch.random.fork_rng():
            network = GPT(RECIPE_NETWORK)
            optimizer = build_optimizer(network, OptimizerConfig())
            self._other = TrainingStep(network, optimizer, BATCH_TOKENS // SEQ_LEN, SEQ_LEN)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Finish a timed step, or begin one."""
        now = time.perf_counter()
        if self._started is not None:
            taken, self._started = now - self._started, None
            started = time.perf_counter()
            self._other()
            self.ratios.setdefault(self._phase, []).append(taken / (time.perf_counter() - started))
        if batch_idx % EVERY == EVERY // 2:
            self._phase = phase_of(trainer)
            self._started = time.perf_counter()

    def ratio(self) -> float:
        """Mean time of a step over the recipe's: each phase's median, weighted by its share of the steps."""
        return sum(len(ratios) * median(ratios) for ratios in self.ratios.values()) / sum(
            map(len, self.ratios.values())
        )


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        bits_per_byte: Of the exported file, read back.
        float_bits_per_byte: Of the weights before export, by the same scorer.
        bytes_model: The file's size.
        bytes_scored: Text that was scored.
        step_ratio: Time of a step over that of a bare step of the recipe's network.
    """

    bits_per_byte: float
    float_bits_per_byte: float
    bytes_model: int
    bytes_scored: int
    step_ratio: float


@dataclass(frozen=True)
class Job:
    """A run to do.

    Args:
        variant: What to run.
        seed: Its initial weights.
        steps: Its optimizer steps.
        data: Its folder of shards, with their tokenizer.
    """

    variant: Variant
    seed: int
    steps: int
    data: Path

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        words = "".join(letter if letter.isalnum() else "_" for letter in self.variant.name)
        return RUNS / words / f"steps_{self.steps}_seed_{self.seed}"

    @property
    def settings(self) -> Settings:
        """All that it sets after its configuration."""
        settings = run_settings(self.variant, self.seed, self.steps)
        settings["data"] |= {"path": str(self.data), "tokenizer_path": str(self.data / "tokenizer.model")}
        settings["trainer"]["default_root_dir"] = str(self.folder)
        return settings

    def kept(self) -> Result | None:
        """Its result, if it has been run with these settings before."""
        file = self.folder / "result.json"
        if not file.exists():
            return None
        kept = json.loads(file.read_text())
        return Result(**kept["result"]) if kept["settings"] == self.settings else None

    def run(self) -> Result:
        """Train, export and score by the command line's own ``fit``, and keep the result."""
        torch.set_num_threads(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        overlay = self.folder / "overlay.yaml"
        overlay.write_text(yaml.safe_dump(self.settings))
        arguments = ["fit", f"--config={ROOT / 'configs' / self.variant.config}.yaml", f"--config={overlay}"]
        with (
            (self.folder / "output.txt").open("w") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            trainer = cli.main(arguments, count_code=lambda config: 0).trainer
        assert trainer.log_dir is not None
        summary = json.loads((Path(trainer.log_dir) / SUMMARY_NAME).read_text())
        result = Result(
            bits_per_byte=summary["val_bpb"],
            float_bits_per_byte=summary["pre_quant_val_bpb"],
            bytes_model=summary["bytes_model"],
            bytes_scored=summary["bytes_scored"],
            step_ratio=find(trainer, Pace).ratio(),
        )
        kept = {"settings": self.settings, "result": asdict(result)}
        write_whole(self.folder / "result.json", json.dumps(kept, indent=2).encode())
        return result


def run_all(jobs: Iterable[Job], processes: int) -> Iterator[tuple[Job, Result]]:
    """The result of every job, those kept first, the others as they finish.

    Args:
        jobs: What to run.
        processes: Runs at a time, each on one thread.
    """
    waiting = []
    for job in jobs:
        kept = job.kept()
        if kept is None:
            waiting.append(job)
        else:
            yield job, kept
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context)
    futures = {pool.submit(job.run): job for job in waiting}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an interrupt or an error, only the runs that have begun
