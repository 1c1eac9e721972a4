"""What the check's parts run on: their sizes, the user's files, the prediction, and one compiled training step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, device, random_network
from benchmarks.qat_switch import Switchable
from components.gpt import GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer

PREDICTION = RESULTS / "gpu_program-record_10l.json"


@dataclass(frozen=True)
class Size:
    """How large the parts are.

    Args:
        config: The network.
        num_sequences: Sequences in a rank's training step.
        seq_len: Tokens in a sequence, and targets in a scored window.
        steps: Training steps.
        windows_per_batch: Windows in a scoring batch.
        batches: Scoring batches.
        overhead_blocks: Blocks of 50 steps in each loop that Lightning is compared with.
    """

    config: GPTConfig
    num_sequences: int
    seq_len: int
    steps: int
    windows_per_batch: int
    batches: int
    overhead_blocks: int


FULL = Size(GPTConfig(), num_sequences=48, seq_len=2048, steps=60, windows_per_batch=64, batches=8, overhead_blocks=2)
"""The record's step on one of its eight ranks."""

SMALL = Size(
    # Wide enough for attention matrices to be quantized.
    GPTConfig(num_layers=2, model_dim=272, num_heads=4, num_kv_heads=2, bigram_vocab_size=64, bigram_dim=16),
    num_sequences=2,
    seq_len=128,
    steps=60,
    windows_per_batch=2,
    batches=2,
    overhead_blocks=1,
)
"""For a machine without a GPU, where only the check itself can be tested."""

LOADER_SIZE = GPTConfig(num_layers=1, model_dim=64, num_heads=2, num_kv_heads=1)
"""The network without a GPU whose fit is compared with a bare loop: so small that the host's work stands out."""


class Setting:
    """What every part is given.

    Args:
        size: How large the parts are.
        golden: Folder of golden numbers; None if there is none.
        data: Folder of the shards that they were computed on; None if there is none.
        tokenizer: The SentencePiece model that encoded these.
        corpus: Folder for the shards that fits of made-up runs read.
    """

    def __init__(
        self, size: Size, golden: Path | None, data: Path | None, tokenizer: Path | None, corpus: Path
    ) -> None:
        self.size = size
        self.golden, self.data, self.tokenizer, self.corpus = golden, data, tokenizer, corpus

    @cached_property
    def prediction(self) -> Mapping[str, Any] | None:
        """What ``benchmarks.gpu_program`` predicted of the record; None at another size or without its result."""
        return json.loads(PREDICTION.read_text()) if self.size is FULL and PREDICTION.exists() else None

    def predicted(self, *path: str) -> float | None:
        """A number of the prediction, by its keys; None without a prediction."""
        if self.prediction is None:
            return None
        found: Any = self.prediction
        for key in path:
            found = found[key]
        return float(found)

    def predicted_pass(self, part: str) -> float | None:
        """Milliseconds of a training pass, forward or backward; None without a prediction."""
        if self.prediction is None:
            return None
        times = self.prediction["passes"]["train"][part]["ms"]
        return sum(ms for name, ms in times.items() if name != "products_at_ceiling")  # another estimate of the same

    @cached_property
    def step(self) -> Switchable:
        """The record's training step on made-up ids, its network compiled as in a run."""
        network = random_network(self.size.config)
        network.compile(dynamic=False, fullgraph=True)
        step = Switchable(
            network, build_optimizer(network, OptimizerConfig()), self.size.num_sequences, self.size.seq_len
        )
        self.new_ids(step)
        return step

    def new_ids(self, step: Switchable) -> None:
        """Give a step other ids, without waiting for the device; a few ids are frequent, which a network can learn."""
        uniform = torch.rand(self.size.num_sequences * self.size.seq_len + 1)
        span = (uniform.pow(4) * self.size.config.vocab_size).long()
        step.load(span.pin_memory() if device().type == "cuda" else span)
