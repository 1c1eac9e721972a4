"""Lightning's share of a step, ``fit`` against a bare loop over the same network: ``python -m benchmarks.overhead``.

``fit`` runs through the command line with the record's configuration and with every callback, logger and the progress
bar on. The bare loop runs before and after it, reads the same stream, and trains the same compiled network with the
same optimizer. The network has full size on a GPU; on a CPU it is small, so that the host's work stands out. A few
steady steps of each are then profiled, to count what makes the host wait for the device.
"""

from __future__ import annotations

import itertools
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

import cli
from benchmarks.common import TrainingStep, device, device_name, random_network, save, synchronize, table
from callbacks.common import find
from components.gpt import GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer
from datamodules.corpus import build_corpus
from datamodules.shards import find_shards
from datamodules.stream import SpanLoader, TokenStream

DATA = Path(".cache/demo")
FIRST, BLOCK = 20, 50  # both are timed from this step on, in blocks with one logged step each
BLOCKS = 8
PROFILED = 10  # steps after those, none of which is logged
WAITS = (
    "aten::_local_scalar_dense",
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
)
"""Calls that make the host wait; ``.item()`` makes the first, and on a GPU tensor also the third."""
RECORD_STEP_SECONDS = 0.05


@contextmanager
def watched_synchronizations() -> Iterator[list[str]]:
    """Collect where the host waits for the device, as FILE:LINE, once the context ends; nothing on a CPU."""
    places: list[str] = []
    if device().type != "cuda":
        yield places
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    synchronizing = (warning for warning in caught if "synchronizing CUDA operation" in str(warning.message))
    places += (f"{Path(warning.filename).name}:{warning.lineno}" for warning in synchronizing)


class Meter:
    """The median step time of a loop's blocks, and the waits in the steps after them.

    Args:
        blocks: Blocks of steps to time.
    """

    def __init__(self, blocks: int) -> None:
        self.last = FIRST + BLOCK * blocks
        self.waits: dict[str, int] = {}
        self.synchronizations: list[str] = []
        self._times: list[float] = []
        self._profile: Any = None
        self._watch = ExitStack()

    @property
    def num_steps(self) -> int:
        """Steps that the loop must take."""
        return self.last + 1 + PROFILED

    @property
    def seconds_per_step(self) -> float:
        """Seconds per step of the median block."""
        return median(b - a for a, b in itertools.pairwise(self._times)) / BLOCK

    def after(self, step: int) -> None:
        """Take note that ``step`` steps are done."""
        if FIRST <= step <= self.last and (step - FIRST) % BLOCK == 0:
            synchronize()
            self._times.append(time.perf_counter())
        if step == self.last + 1:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device().type == "cuda" else [])]
            self._profile = profile(activities=activities)
            self._profile.start()
            self.synchronizations = self._watch.enter_context(watched_synchronizations())
        if step == self.num_steps:
            self._watch.close()
            self._profile.stop()
            counts = {event.key: event.count for event in self._profile.key_averages()}
            self.waits = {name: counts.get(name, 0) for name in WAITS}


class Probe(Callback):
    """Meter the steps of a fit.

    Args:
        blocks: Blocks of steps to time.
    """

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.meter = Meter(blocks)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step."""
        self.meter.after(trainer.global_step)


def bare(step: TrainingStep, stream: TokenStream, blocks: int) -> Meter:
    """Meter a plain loop."""
    loader = SpanLoader(
        stream,
        position=0,
        batch_tokens=step.num_tokens,
        micro_batches=1,
        seq_len=step.seq_len,
        pin_memory=device().type == "cuda",
    )
    meter = Meter(blocks)
    for number, batch in enumerate(itertools.islice(loader, meter.num_steps)):
        step.input_ids, step.target_ids = (ids.to(device(), non_blocking=True) for ids in batch)
        step()
        meter.after(number + 1)
    return meter


def fit(config: GPTConfig, num_sequences: int, seq_len: int, data: Path, runs: str, blocks: int) -> Meter:
    """Meter a fit of the record's configuration with this network and batch."""
    overlay = "configs/one_gpu.yaml" if device().type == "cuda" else "configs/cpu.yaml"
    settings = {
        "model.num_layers": config.num_layers,
        "model.model_dim": config.model_dim,
        "model.num_heads": config.num_heads,
        "model.num_kv_heads": config.num_kv_heads,
        "data.path": data,
        "data.tokenizer_path": data / "tokenizer.model",
        "data.train_batch_tokens": num_sequences * seq_len,
        "data.train_seq_len": seq_len,
        "data.train_micro_batches": 1,
        "scoring.seq_len": 256,
        "scoring.stride": 256,  # one shape to compile: scoring is not what is timed
        "scoring.max_tokens": 2048,
        "trainer.max_steps": Meter(blocks).num_steps + 1,
        "trainer.default_root_dir": runs,
        "warmup.steps": 2,
    }
    arguments = ["fit", "--config", "configs/record_10l.yaml", "--config", overlay]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    probe = [f"--trainer.callbacks+={Probe.__module__}.Probe", f"--trainer.callbacks.blocks={blocks}"]
    return find(cli.main([*arguments, *probe]).trainer, Probe).meter


@dataclass(frozen=True)
class Comparison:
    """A fit and the bare loops before and after it."""

    bare: tuple[Meter, Meter]
    fit: Meter

    @property
    def added_seconds(self) -> float:
        """What the fit adds to a step."""
        return self.fit.seconds_per_step - mean(loop.seconds_per_step for loop in self.bare)


def compare(config: GPTConfig, num_sequences: int, seq_len: int, data: Path, blocks: int) -> Comparison:
    """Meter a bare loop, a fit and a bare loop.

    Args:
        config: The network.
        num_sequences: Sequences in a step.
        seq_len: Tokens in a sequence.
        data: Folder of shards, and of the tokenizer that encoded them.
        blocks: Blocks of steps to time in each loop.
    """
    stream = TokenStream(find_shards(data, "train"), config.vocab_size)
    network = random_network(config)
    network.compile(dynamic=False, fullgraph=True)
    step = TrainingStep(network, build_optimizer(network, OptimizerConfig()), num_sequences, seq_len)
    before = bare(step, stream, blocks)
    with tempfile.TemporaryDirectory() as runs:
        fitted = fit(config, num_sequences, seq_len, data, runs, blocks)
    return Comparison((before, bare(step, stream, blocks)), fitted)


def main() -> None:
    """Measure, print, save."""
    if device().type == "cuda":
        config, num_sequences, seq_len = GPTConfig(), 48, 2048
    else:
        config, num_sequences, seq_len = GPTConfig(num_layers=1, model_dim=64, num_heads=2, num_kv_heads=1), 1, 128
    build_corpus(DATA)
    compared = compare(config, num_sequences, seq_len, DATA, BLOCKS)
    loops, fitted, extra = compared.bare, compared.fit, compared.added_seconds
    step_tokens = num_sequences * seq_len
    print(f"{config.num_layers} layers of width {config.model_dim}, {step_tokens:,} tokens per step, {device_name()}")
    rows = [
        ("bare loop, before", f"{1000 * loops[0].seconds_per_step:.2f}"),
        ("fit", f"{1000 * fitted.seconds_per_step:.2f}"),
        ("bare loop, after", f"{1000 * loops[1].seconds_per_step:.2f}"),
        ("fit adds", f"{1000 * extra:.2f}"),
        (f"as a share of a {1000 * RECORD_STEP_SECONDS:.0f} ms step", f"{extra / RECORD_STEP_SECONDS:.1%}"),
    ]
    print(table(("per step", "ms"), rows))
    waits = [(name, loops[0].waits[name], fitted.waits[name]) for name in WAITS]
    print(table((f"waits in {PROFILED} steady steps", "bare", "fit"), waits))
    save(
        "overhead",
        {
            "num_layers": config.num_layers,
            "model_dim": config.model_dim,
            "step_tokens": step_tokens,
            "bare_seconds": [loop.seconds_per_step for loop in loops],
            "fit_seconds": fitted.seconds_per_step,
            "of_record_step": extra / RECORD_STEP_SECONDS,
            "steady_steps": PROFILED,
            "waits": {"bare": loops[0].waits, "fit": fitted.waits},
            "synchronizations": {"bare": loops[0].synchronizations, "fit": fitted.synchronizations},
        },
    )


if __name__ == "__main__":
    main()
