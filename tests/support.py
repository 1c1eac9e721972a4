"""Shared by several tests: outside numbers, requirements on the machine, and small networks and data."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from components.byte_counts import ByteTable
from components.gpt import GPT, GPTConfig
from components.quantization import Nearest, StoredTensor, store
from components.storage import RECIPE, Storage, assign, keep_last_keys

if TYPE_CHECKING:
    from cli import GolfCLI

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
SAMPLE = SHARED / "fineweb_sample"

# Of a CUDA build of torch, which need not be the one that runs the tests.
CUDA_PYTHON = Path(os.environ.get("GPU_PROGRAM_PYTHON", ROOT / ".venv-gpu" / "bin" / "python"))

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden numbers are not at {GOLDEN}")
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the FineWeb sample is not at {SAMPLE}")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile on a CPU needs g++, which is not installed",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")

TINY = {
    "vocab_size": 1024,
    "num_layers": 3,
    "model_dim": 64,
    "num_heads": 2,
    "num_kv_heads": 1,
    "bigram_vocab_size": 64,
    "bigram_dim": 16,
}

# Under 65,537 elements a matrix stays float16: fast, for what does not look at quantized weights.
NARROW = {"model.model_dim": 64, "model.num_heads": 2}


class Terminal(io.StringIO):
    """What a run takes for a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class FinishedRun:
    """A fit that is over."""

    cli: "GolfCLI"
    folder: Path
    stdout: str
    data: Path

    @property
    def logs(self) -> Path:
        """The folder of its results."""
        return self.folder / "lightning_logs" / "version_0"

    @property
    def checkpoint(self) -> Path:
        [file] = self.folder.rglob("*.ckpt")
        return file


def golden_config() -> GPTConfig:
    settings = json.loads((GOLDEN / "config.json").read_text())
    return GPTConfig(**{name: value for name, value in settings.items() if name in GPTConfig.__dataclass_fields__})


def golden_network(weights: str) -> GPT:
    from safetensors.torch import load_file

    network = GPT(golden_config())
    network.load_state_dict(load_file(GOLDEN / weights))
    return network


def tiny_network(seed: int = 0, **settings: Any) -> GPT:
    """A network in which every parameter is random, so that no path through it is dead."""
    torch.manual_seed(seed)
    network = GPT(GPTConfig(**{**TINY, **settings}))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return network


def recipe_storages(shapes: Mapping[str, Sequence[int]], keep: int = 1) -> dict[str, Storage]:
    """How the recipe stores tensors of these shapes."""
    return {name: rule.kind for name, rule in assign(shapes, (*keep_last_keys(keep), *RECIPE)).items()}


def recipe_stored(state: Mapping[str, torch.Tensor], keep: int = 1) -> dict[str, StoredTensor]:
    """Weights as the recipe stores them."""
    return store(state, recipe_storages({name: w.shape for name, w in state.items()}, keep), Nearest())


def random_ids(*shape: int, vocab_size: int = 1024, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def bytes_by_id(piece_bytes: torch.Tensor) -> ByteTable:
    """A table of pieces without leading spaces."""
    return ByteTable(piece_bytes, torch.zeros_like(piece_bytes), torch.zeros_like(piece_bytes))


def run(
    *command: str, timeout: float = 120, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in its own process and a folder, by default the project's, without any launcher's variables."""
    scrubbed = ("PYTHONPATH", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")
    scrubbed += ("MASTER_PORT", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in scrubbed}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_shard(path: Path, ids: np.ndarray) -> None:
    """The published shard format, written independently of the product's own writer."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + ids.astype("<u2").tobytes())


def fit_arguments(data: Path, runs: Path, **settings: Any) -> list[str]:
    """``fit`` arguments of a small run that goes through every phase in 12 steps; settings by their dotted names."""
    defaults = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.max_epochs": -1,
        "trainer.max_steps": 12,
        "trainer.val_check_interval": 48,
        "trainer.check_val_every_n_epoch": "null",
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.gradient_clip_val": 0.3,
        "trainer.use_distributed_sampler": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": runs,
        **{f"model.{name}": value for name, value in TINY.items()},
        "model.num_layers": 2,
        "model.model_dim": 272,  # wide enough for an attention matrix to be int6
        "model.num_heads": 4,
        "data.path": data,
        "data.tokenizer_path": data / "tokenizer.model",
        "data.train_batch_tokens": 1024,
        "data.train_seq_len": 64,
        "warmup.steps": 2,
        "clock.max_seconds": 0,
        "schedule.warmdown_steps": 8,
        "late_qat.start_fraction": 0.7,
        "averaging.every_n_steps": 2,
        "scoring.seq_len": 64,
        "scoring.stride": 32,
        "scoring.max_tokens": 1000,
        "scoring.windows_per_batch": 8,
    }
    return ["fit", *(f"--{name}={value}" for name, value in {**defaults, **settings}.items())]


def validate_arguments(data: Path, runs: Path, **settings: Any) -> list[str]:
    """``validate`` arguments that score as ``fit_arguments`` does, without describing the network."""
    kept = ("trainer.accelerator", "trainer.devices", "trainer.default_root_dir", "data.path", "data.tokenizer_path")
    arguments = fit_arguments(data, runs)[1:]
    return [
        "validate",
        *(a for a in arguments if a[2:].split("=")[0] in kept or a.startswith("--scoring.")),
        *(f"--{name}={value}" for name, value in settings.items()),
    ]


def summary_of(runs: Path, version: int = 0) -> dict[str, Any]:
    return json.loads((runs / "lightning_logs" / f"version_{version}" / "summary.json").read_text())


def scalars_of(runs: Path, tag: str, version: int = 0) -> dict[int, float]:
    """A TensorBoard curve, value by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "lightning_logs" / f"version_{version}"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def marks_of(runs: Path, tag: str, version: int = 0) -> dict[int, str]:
    """The events of a tag that TensorBoard shows as text, by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "lightning_logs" / f"version_{version}"))
    events.Reload()
    found = events.Tensors(f"events/{tag}/text_summary")
    return {event.step: b" ".join(event.tensor_proto.string_val).decode() for event in found}
