"""Bytes that a rank sends in a step, beside the least it could send: ``python -m benchmarks.communication``.

Two counts, at several numbers of ranks:

- The record's network at full size. One process plays one rank with collectives that move nothing (torch's fake
  backend), and the tensors that it gives to them are counted.
- A small fit with real ranks over gloo. Everything that a fit exchanges in a steady step is counted, and so are the
  bytes that the process writes: its log and checkpoint rest then, so these go to the other ranks.

A collective's tensors become bytes sent by the best known method: n bytes summed over N ranks take ``2 n (N - 1) / N``
per rank (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009), n bytes gathered from each rank
``n (N - 1)``, n bytes broadcast n.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cli
from benchmarks.common import save, table
from callbacks.common import ends_step, find
from components.gpt import GPT, GPTConfig
from components.optimizer import OptimizerConfig, build_optimizer, parameter_groups
from datamodules.corpus import build_corpus

WORLD_SIZES = (2, 4, 8)
DATA = Path(".cache/demo")
FIRST, COUNTED = 5, 10
"""Steps before the counted ones, and their number."""

SMALL = GPTConfig(num_layers=2, model_dim=64, num_heads=2, num_kv_heads=1, bigram_vocab_size=64, bigram_dim=16)


class Traffic(TorchDispatchMode):
    """Counts the bytes that a process sends to the other ranks, by collective, as the best known method sends them."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator and count it if it is a collective."""
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            self.sent[name] = self.sent.get(name, 0.0) + sent_bytes(name, args, dist.get_world_size())
        return func(*args, **(kwargs or {}))


def sent_bytes(collective: str, args: Any, world_size: int) -> float:
    """Bytes that one rank sends for a collective.

    Args:
        collective: Its name, without underscores at its ends.
        args: What it was called with.
        world_size: The ranks that take part.
    """
    if collective == "allgather_base":
        _, own, *_ = args
        return (world_size - 1) * own.nbytes
    num_bytes = sum(leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    if collective == "allreduce":
        return 2 * num_bytes * (world_size - 1) / world_size
    assert collective == "broadcast", f"unknown collective {collective}: say what it sends"
    return num_bytes


def least_bytes(network: GPT, world_size: int) -> dict[str, float]:
    """The fewest bytes that a rank must send in a step, by what they are for.

    Gradients are summed in float32, and orthogonalized updates of the matrices exchanged in bfloat16, unpadded.
    """
    share = (world_size - 1) / world_size
    num_parameters = sum(p.numel() for p in network.parameters())
    num_in_matrices = sum(p.numel() for p in parameter_groups(network)["matrices"])
    return {"allreduce": 2 * 4 * num_parameters * share, "allgather_base": 2 * num_in_matrices * share}


def fake_rank_traffic(config: GPTConfig, world_size: int) -> dict[str, float]:
    """Bytes that rank 0 sends in a step of a network, by collective, counted in this process alone."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        network = GPT(config)
        optimizer = build_optimizer(network, OptimizerConfig())
        ids = torch.randint(config.vocab_size, (1, 16))
        network(ids, ids).mean().backward()
        with Traffic() as traffic:
            for p in network.parameters():  # as DistributedDataParallel, but for its buckets
                assert p.grad is not None
                dist.all_reduce(p.grad)
            optimizer.step()
        return traffic.sent
    finally:
        dist.destroy_process_group()


def run_ranks(world_size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call ``work(*arguments)`` in processes that are the ranks of one torchrun.

    They are forked from a server that has imported the project once. Raises what one of them raised.

    Args:
        world_size: Processes to start.
        work: A function of a module, the same in each.
        arguments: What it is called with.
    """
    multiprocessing.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_as_rank, (world_size, port, work, arguments), nprocs=world_size, start_method="forkserver")


def _as_rank(rank: int, world_size: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "ranks",
    }
    torch.set_num_threads(1)
    work(*arguments)


class TrafficMeter(Callback):
    """Count what a fit's rank sends in COUNTED steps after the first FIRST."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.traffic = Traffic()
        self._counting = contextlib.ExitStack()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin after the first steps, end after the counted ones."""
        if not ends_step(trainer, batch_idx):
            return
        if trainer.global_step == FIRST:
            self._counting.enter_context(self._counted())
        if trainer.global_step == FIRST + COUNTED:
            self._counting.close()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        before = written_bytes()
        with self.traffic:
            yield
        self.written = written_bytes() - before


def written_bytes() -> int:
    """Bytes that this process has written to files and sockets (Linux)."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"])


def fit_rank(config: GPTConfig, data: Path, out: Path) -> None:
    """Fit as one of several ranks, and write what it sent in a step."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    settings = {
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
        "trainer.devices": os.environ["WORLD_SIZE"],
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.log_every_n_steps": 1000,
        "trainer.max_steps": FIRST + COUNTED + 1,
        "trainer.default_root_dir": out,
        "model.compile": "false",
        "data.path": data,
        "data.tokenizer_path": data / "tokenizer.model",
        "data.train_batch_tokens": 512,
        "data.train_seq_len": 64,
        "scoring.seq_len": 64,
        "scoring.max_tokens": 512,
        "warmup.steps": 2,
        **{f"model.{name}": value for name, value in vars(config).items() if name not in ("vocab_size", "bos_id")},
    }
    arguments = ["fit", "--config", "configs/record_10l.yaml", f"--trainer.callbacks+={__name__}.TrafficMeter"]
    arguments += [f"--{name}={'null' if value is None else value}" for name, value in settings.items()]
    meter = find(cli.main(arguments).trainer, TrafficMeter)
    sent = {name: count / COUNTED for name, count in meter.traffic.sent.items()}
    file = out / f"rank_{os.environ['RANK']}.json"
    file.write_text(json.dumps({"sent": sent, "written": meter.written / COUNTED}))


def fit_traffic(config: GPTConfig, world_size: int, data: Path) -> list[dict[str, Any]]:
    """What each rank of a fit sends in a step: bytes by collective, and bytes that its process wrote."""
    with tempfile.TemporaryDirectory() as scratch:
        run_ranks(world_size, fit_rank, config, data, Path(scratch))
        return [json.loads((Path(scratch) / f"rank_{rank}.json").read_text()) for rank in range(world_size)]


def rows_of(world_size: int, sent: Mapping[str, float], least: Mapping[str, float], unit: float) -> tuple[str, ...]:
    """A row: gradients, updates and all else, the least, and how much more is sent than that."""
    total, minimum = sum(sent.values()), sum(least.values())
    other = total - sum(sent[name] for name in least)
    parts = [*(f"{sent[name] / unit:,.2f}" for name in least), f"{other / unit:,.4f}"]
    return str(world_size), *parts, f"{minimum / unit:,.2f}", f"{total / minimum - 1:+.1%}"


def main() -> None:
    """Count, print, save."""
    build_corpus(DATA)
    full, small = {}, {}
    for world_size in WORLD_SIZES:
        full[world_size] = fake_rank_traffic(GPTConfig(), world_size)
        small[world_size] = fit_traffic(SMALL, world_size, DATA)
    header = ("ranks", "gradients", "updates", "all else", "least", "over")
    with torch.device("meta"):
        networks = GPT(GPTConfig()), GPT(SMALL)
    least = [{n: least_bytes(network, n) for n in WORLD_SIZES} for network in networks]
    print("MB that a rank sends in a step of the record's network\n")
    print(table(header, [rows_of(n, full[n], least[0][n], 1e6) for n in WORLD_SIZES]))
    print("\nkB that a rank of a small fit sends in a step, and that its process wrote, on average over the ranks\n")
    rows = []
    for n, ranks in small.items():
        sent = {name: sum(rank["sent"][name] for rank in ranks) / n for name in ranks[0]["sent"]}
        written = sum(rank["written"] for rank in ranks) / n
        rows.append((*rows_of(n, sent, least[1][n], 1e3), f"{written / 1e3:,.2f}"))
    print(table((*header, "written"), rows))
    save(
        "communication",
        {
            "record": {"sent": full, "least": least[0]},
            "small_fit": {"config": dataclasses.asdict(SMALL), "by_rank": small, "least": least[1]},
        },
    )


if __name__ == "__main__":
    main()
