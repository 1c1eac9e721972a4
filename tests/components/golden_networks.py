"""The public records' networks, small, with their golden weights."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.gpt import GPT, GPTConfig
from tests.support import SHARED

LATE, MID, TOP = SHARED / "golden_late", SHARED / "golden_mid", SHARED / "golden_top"
needs_late = pytest.mark.skipif(not LATE.is_dir(), reason=f"the golden numbers of the late record are not at {LATE}")
needs_mid = pytest.mark.skipif(not MID.is_dir(), reason=f"the golden numbers of the middle record are not at {MID}")
needs_top = pytest.mark.skipif(not TOP.is_dir(), reason=f"the golden numbers of the top record are not at {TOP}")


@functools.cache
def read_json(golden: Path, name: str) -> dict[str, Any]:
    return json.loads((golden / name).read_text())


def late_network(looping: bool = True, **changed: Any) -> GPT:
    """The network of the 1.0810 record, small, with settings changed; what these leave without use is not loaded."""
    public = read_json(LATE, "config.json")
    settings = {name: value for name, value in public.items() if name in GPTConfig.__dataclass_fields__}
    settings |= {"skip_gates": public["skip_gates_enabled"], "parallel_from": public["parallel_residual_start"]}
    settings |= {"mlp_leak": 0.5, "smear": "none", "bigram_vocab_size": 0}
    network = load(GPT(GPTConfig(**{**settings, **changed})), LATE)
    network.looping = looping
    return network


def mid_network(**changed: Any) -> GPT:
    """The network of the 1.1147 record, small, without its value embedding."""
    public = read_json(MID, "config.json")
    settings = {name: value for name, value in public.items() if name in GPTConfig.__dataclass_fields__}
    return load(GPT(GPTConfig(**{**settings, "mlp_leak": 0.5, **changed})), MID)


def load(network: GPT, golden: Path) -> GPT:
    """Give a network the public tensors of its own names, which must be all that it has."""
    public = load_file(golden / "weights.safetensors")
    network.load_state_dict({name: public[name].float() for name in network.state_dict()})
    return network


@functools.cache
def batch(golden: Path) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = np.load(golden / "forward.npz")
    return tuple(torch.from_numpy(arrays[name]).long() for name in ("input_ids", "target_ids"))


def mean_loss(network: GPT, golden: Path) -> float:
    with torch.no_grad():
        return network(*batch(golden)).mean().item()
