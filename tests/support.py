"""What several tests share: the outside numbers, what a machine must have, and small networks and data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.gpt import GPT, GPTConfig

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
SAMPLE = SHARED / "fineweb_sample"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden numbers are not at {GOLDEN}")
needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the FineWeb sample is not at {SAMPLE}")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile on a CPU needs g++, which is not here"
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


def golden_config() -> GPTConfig:
    settings = json.loads((GOLDEN / "config.json").read_text())
    return GPTConfig(**{name: value for name, value in settings.items() if name in GPTConfig.__dataclass_fields__})


def golden_network(weights: str) -> GPT:
    from safetensors.torch import load_file

    network = GPT(golden_config())
    network.load_state_dict(load_file(GOLDEN / weights))
    return network


def tiny_network(seed: int = 0, **settings: Any) -> GPT:
    """A network whose every parameter is random, so that no path through it is dead."""
    torch.manual_seed(seed)
    network = GPT(GPTConfig(**{**TINY, **settings}))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return network


def random_ids(*shape: int, vocab_size: int = 1024, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def run(*command: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command of the project in a process of its own, free of any launcher's variables."""
    scrubbed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in scrubbed}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
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
