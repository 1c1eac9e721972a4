"""What the data path costs: `python -m benchmarks.data [--gigabyte]`.

It compares the stream of one rank and of eight with a plain memory copy of the same bytes, preparation with bare
SentencePiece encoding on the same threads, and the peak memory of preparing a text with that of one ten times as long.
Whatever is compared is measured alternately within one run, and the median of several measurements counts.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import multiprocessing.synchronize
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sentencepiece
import torch

from benchmarks.common import save, seconds
from datamodules.corpus import standard_library
from datamodules.documents import read_documents
from datamodules.prepare import prepare
from datamodules.shards import shard_name, write_shard
from datamodules.stream import BATCHES_A_HANDOVER, HANDOVERS_AHEAD, SpanLoader, TokenStream
from datamodules.tokenizer import train_tokenizer

VOCAB_SIZE = 1024
BATCH_TOKENS, MICRO_BATCHES, SEQ_LEN = 786_432, 8, 2048
"""The record run's, which give spans of 98,305 ids."""
STREAM_IDS = 20_000_000
SPANS = 400
REPEATS = 5
NEEDED_TOKENS_PER_SECOND = 1_650_000
"""The highest rate at which one GPU trains."""
ENCODED_BYTES = 20_000_000
ROOT = Path(__file__).parents[1]


class RankBench:
    """Read, or only copy, what one rank reads."""

    def __init__(self, shard: Path, rank: int, world_size: int) -> None:
        """Map the shard and load it into memory."""
        stream = TokenStream([shard], VOCAB_SIZE)
        self.loader = SpanLoader(
            stream,
            position=0,
            batch_tokens=BATCH_TOKENS,
            micro_batches=MICRO_BATCHES,
            seq_len=SEQ_LEN,
            rank=rank,
            world_size=world_size,
            pin_memory=torch.cuda.is_available(),
        )
        self.source = stream.take(0, len(stream)).astype(np.int64)
        # As many as the stream keeps in flight, so that the copy does not stay in the cache either.
        num_targets = (HANDOVERS_AHEAD + 2) * BATCHES_A_HANDOVER
        self.targets = [np.empty(self.loader.span_ids, dtype=np.int64) for _ in range(num_targets)]

    def read(self) -> None:
        """Take SPANS micro-batches from the stream."""
        with warnings.catch_warnings(action="ignore"):  # the shard is read several times
            for _ in itertools.islice(self.loader, SPANS):
                pass

    def copy(self) -> None:
        """Copy the bytes of SPANS micro-batches from memory to memory."""
        num_ids = self.loader.span_ids
        for index in range(SPANS):
            start = index * num_ids % (len(self.source) - num_ids)
            np.copyto(self.targets[index % len(self.targets)], self.source[start : start + num_ids])


def run_rank(shard: Path, rank: int, world_size: int, barrier: multiprocessing.synchronize.Barrier, rates: Any) -> None:
    """Measure one rank among others; rank 0 sends the total tokens per second of all ranks, read and copied."""
    bench = RankBench(shard, rank, world_size)
    measured: dict[str, list[float]] = {"read": [], "copy": []}

    def until_all_have(work: Callable[[], None]) -> None:
        work()
        barrier.wait()

    for _ in range(REPEATS):
        for name, work in (("read", bench.read), ("copy", bench.copy)):
            barrier.wait()
            elapsed = seconds(functools.partial(until_all_have, work))
            measured[name].append(world_size * SPANS * (bench.loader.span_ids - 1) / elapsed)
    if rank == 0:
        rates.put(measured)


def measure_stream(shard: Path, world_size: int) -> dict[str, float]:
    """Tokens per second of all ranks together, each in its own process."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(world_size), context.Queue()
    ranks = [
        context.Process(target=run_rank, args=(shard, rank, world_size, barrier, rates)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    measured = rates.get(timeout=100)
    for process in ranks:
        process.join()
    stream, copy = median(measured["read"]), median(measured["copy"])
    return {
        "tokens_per_second": stream,
        "copy_tokens_per_second": copy,
        "of_copy": stream / copy,
        "times_needed": stream / (world_size * NEEDED_TOKENS_PER_SECOND),
    }


@functools.cache
def texts() -> list[str]:
    """Documents about as long as web pages."""
    return [text for text in standard_library() if len(text) < 50_000]


def jsonl_lines(num_bytes: int) -> Iterator[bytes]:
    """JSONL lines with at least ``num_bytes`` bytes of text: the standard library's documents, repeated."""
    for text in itertools.cycle(texts()):
        if num_bytes <= 0:
            return
        num_bytes -= len(text.encode())
        yield json.dumps({"text": text}).encode() + b"\n"


def measure_preparation(folder: Path) -> dict[str, float]:
    """Bytes of text per second of the whole preparation and of bare encoding, on all cores."""
    path, model = folder / "docs.jsonl", folder / "tokenizer.model"
    path.write_bytes(b"".join(jsonl_lines(ENCODED_BYTES)))
    documents = list(read_documents(str(path)))
    train_tokenizer(documents[:500], VOCAB_SIZE, model)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(model))
    num_workers = os.cpu_count() or 1

    def encode() -> None:
        tokenizer.Encode(documents, return_type="numpy", num_threads=num_workers)

    def prepare_all() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            prepare(read_documents(str(path)), Path(out), source="benchmark", val_docs=10, tokenizer=model)

    num_bytes = sum(map(len, documents))
    times = [(seconds(encode), seconds(prepare_all)) for _ in range(3)]
    bare, whole = (num_bytes / median(column) for column in zip(*times, strict=True))
    return {"bytes_per_second": whole, "bare_bytes_per_second": bare, "of_bare": whole / bare}


PREPARE_AND_TELL_PEAK = """
import sys
from datamodules.prepare import main
main()
# Not getrusage, which also counts the process that started this one.
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
"""


def peak_memory(num_bytes: int, folder: Path) -> float:
    """Peak resident memory, in megabytes, of a process that prepares text from a pipe, tokenizer training included."""
    command = [sys.executable, "-c", PREPARE_AND_TELL_PEAK, "-", "--out", str(folder / str(num_bytes))]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stderr
        with process.stdin as pipe:
            for line in jsonl_lines(num_bytes):
                pipe.write(line)
        return int(process.stderr.read().split()[-1]) / 1024


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description="Measure what the data path costs.")
    parser.add_argument(
        "--gigabyte",
        action="store_true",
        help="compare the memory for 100 MB and 1 GB of text instead of 20 and 200 MB (takes minutes)",
    )
    smaller = 100_000_000 if parser.parse_args().gigabyte else 20_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard = folder / shard_name("train", 0)
        ids = np.random.default_rng(1337).integers(0, VOCAB_SIZE, STREAM_IDS, dtype=np.uint16)
        write_shard(shard, ids)
        streams = {}
        for world_size in (1, 8):
            streams[f"{world_size}_ranks"] = stream = measure_stream(shard, world_size)
            print(
                f"stream, ranks: {world_size}   {stream['tokens_per_second'] / 1e6:8.0f} M tokens/s   "
                f"{stream['of_copy']:.0%} of a copy   {stream['times_needed']:.0f} times what GPUs need"
            )
        preparation = measure_preparation(folder)
        print(
            f"preparation        {preparation['bytes_per_second'] / 1e6:8.1f} MB/s of text   "
            f"{preparation['of_bare']:.0%} of bare encoding"
        )
        memory = {f"peak_mb_{size // 1_000_000}": peak_memory(size, folder) for size in (smaller, 10 * smaller)}
        growth = max(memory.values()) - min(memory.values())
        print(f"peak memory        {memory}   {growth:.0f} MB more for ten times the text")
    save("data", {"stream": streams, "preparation": preparation, "preparation_memory": memory})


if __name__ == "__main__":
    main()
