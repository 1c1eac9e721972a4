"""Export of the full-size model, compared with the public layout: ``python -m benchmarks.export``."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch

from benchmarks.common import device_name, random_network, save, seconds, table
from components.artifact import read_artifact, write_artifact
from components.gpt import GPTConfig
from components.public_artifact import write_public_artifact
from components.quantization import Nearest, load_state, store
from components.storage import RECIPE, assign, keep_last_keys


def main() -> None:
    """Time quantizing, writing and reading; count the bytes."""
    config = GPTConfig()
    network = random_network(config)
    with torch.no_grad():  # rows of different scales, as after training
        for p in network.parameters():
            if p.ndim == 2:
                p.mul_(torch.exp(0.3 * torch.randn(p.size(0), 1, device=p.device)))
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    rules = assign(network.shapes(), (*keep_last_keys(1), *RECIPE))
    storages = {name: rule.kind for name, rule in rules.items()}
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, public = Path(folder) / "model.golf", Path(folder) / "model.int5int6.ptz"
        stored = {}
        times["quantize"] = seconds(lambda: stored.update(store(state, storages, Nearest())))
        times["write"] = seconds(lambda: write_artifact(path, dataclasses.asdict(config), stored))
        times["read"] = seconds(lambda: load_state(read_artifact(path).tensors))
        times["write the public layout"] = seconds(lambda: write_public_artifact(public, stored))
        num_bytes = {"ours": path.stat().st_size, "public": public.stat().st_size}
    print(f"{sum(tensor.numel() for tensor in state.values()):,} parameters on {device_name()}")
    print(table(("step", "seconds"), [(name, f"{time:.2f}") for name, time in times.items()]))
    print(table(("file", "bytes"), [(name, f"{size:,}") for name, size in num_bytes.items()]))
    save("export", {"seconds": times, "bytes": num_bytes})


if __name__ == "__main__":
    main()
