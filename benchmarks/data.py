"""What the data path costs: `python -m benchmarks.data [--gigabyte]`.

The stream of one rank and of eight, in order and shuffled, beside a plain memory copy of the same bytes; drawing the
order of the record's data; preparation, beside bare SentencePiece encoding with the same threads; the peak memory of
preparing a text and one ten times as long. Whatever is compared is measured in turn within one run, and the middle of
several measurements counts.
"""

import argparse
import collections
import functools
import itertools
import json
import multiprocessing
import multiprocessing.synchronize
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
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
from datamodules.shuffled import ShuffledLoader, shuffled_passes
from datamodules.stream import BATCHES_A_HANDOVER, HANDOVERS_AHEAD, SpanLoader, StreamLoader, TokenStream
from datamodules.tokenizer import train_tokenizer

VOCAB_SIZE = 1024
BATCH_TOKENS, MICRO_BATCHES, SEQ_LEN = 786_432, 8, 2048
"""The record's: spans of 98,305 ids."""
SHARD_IDS = 20_000_000
NUM_SHARDS = 16
"""All of them one file, so that eight ranks need not start a second pass, which real data does not have them do."""
NUM_BATCHES = 400
REPEATS = 9
RECORD_SHARDS = [100_000_000] * 128
NEEDED_TOKENS_PER_SECOND = 1_650_000
"""What one GPU trains on at its fastest."""
ENCODED_BYTES = 20_000_000
ROOT = Path(__file__).parents[1]


class RankBench:
    """Reads, or only copies, what one rank of a world reads."""

    def __init__(self, shards: list[Path], rank: int, world_size: int) -> None:
        """Map the shards, and have their one file in memory."""
        stream = TokenStream(shards, VOCAB_SIZE)
        settings: dict[str, Any] = {
            "stream": stream,
            "position": 0,
            "batch_tokens": BATCH_TOKENS,
            "micro_batches": MICRO_BATCHES,
            "seq_len": SEQ_LEN,
            "rank": rank,
            "world_size": world_size,
            "pin_memory": torch.cuda.is_available(),
        }
        self.loader = SpanLoader(**settings)
        self.shuffled = ShuffledLoader(**settings)
        self.source = stream.take(0, SHARD_IDS).astype(np.int64)
        # As many as the stream has under way, so that the copy does not work in a corner of the cache either.
        num_targets = (HANDOVERS_AHEAD + 2) * BATCHES_A_HANDOVER
        self.targets = [np.empty(BATCH_TOKENS // MICRO_BATCHES + 1, dtype=np.int64) for _ in range(num_targets)]

    def read(self, loader: StreamLoader) -> float:
        """Seconds for NUM_BATCHES micro-batches after the first, with which the reader has started."""
        with closing(iter(loader)) as batches, warnings.catch_warnings(action="ignore"):  # the data wraps
            next(batches)
            return seconds(lambda: collections.deque(itertools.islice(batches, NUM_BATCHES), maxlen=0))

    def wait(self, loader: StreamLoader) -> float:
        """Seconds that a training loop waits for a micro-batch, at ten times the speed of the fastest GPU."""
        step_seconds = BATCH_TOKENS / MICRO_BATCHES / (10 * NEEDED_TOKENS_PER_SECOND)
        with closing(iter(loader)) as batches:
            next(batches)
            waits = []
            for _ in range(NUM_BATCHES // 4):
                time.sleep(step_seconds)
                waits.append(seconds(lambda: next(batches)))
        return median(waits)

    def copy(self) -> float:
        """Seconds to copy the bytes of NUM_BATCHES micro-batches from memory to memory."""
        num_ids = len(self.targets[0])

        def copy_all() -> None:
            for index in range(NUM_BATCHES):
                start = index * num_ids % (len(self.source) - num_ids)
                np.copyto(self.targets[index % len(self.targets)], self.source[start : start + num_ids])

        return seconds(copy_all)


def run_rank(
    shards: list[Path], rank: int, world_size: int, barrier: multiprocessing.synchronize.Barrier, times: Any
) -> None:
    """Measure one rank among others, and send its seconds for each thing and repetition."""
    bench = RankBench(shards, rank, world_size)
    works: dict[str, Callable[[], float]] = {
        "in_order": functools.partial(bench.read, bench.loader),
        "shuffled": functools.partial(bench.read, bench.shuffled),
        "copy": bench.copy,
        "wait": functools.partial(bench.wait, bench.loader),
        "shuffled_wait": functools.partial(bench.wait, bench.shuffled),
    }
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(REPEATS):
        for name, work in works.items():
            barrier.wait()
            measured[name].append(work())
    times.put(measured)


def measure_stream(shards: list[Path], world_size: int) -> dict[str, float]:
    """Tokens a second of all ranks together, each in its own process."""
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(world_size), context.Queue()
    ranks = [
        context.Process(target=run_rank, args=(shards, rank, world_size, barrier, times)) for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    measured = [times.get(timeout=200) for _ in ranks]
    for process in ranks:
        process.join()
    tokens = world_size * NUM_BATCHES * BATCH_TOKENS // MICRO_BATCHES
    # The slowest rank is the one that the others wait for.
    slowest = {name: median(map(max, zip(*(rank[name] for rank in measured), strict=True))) for name in measured[0]}
    in_order, shuffled, copy = (tokens / slowest[name] for name in ("in_order", "shuffled", "copy"))
    return {
        "tokens_per_second": in_order,
        "shuffled_tokens_per_second": shuffled,
        "copy_tokens_per_second": copy,
        "of_copy": in_order / copy,
        "shuffled_of_in_order": shuffled / in_order,
        "times_needed": in_order / (world_size * NEEDED_TOKENS_PER_SECOND),
        "wait_microseconds": 1e6 * slowest["wait"],
        "shuffled_wait_microseconds": 1e6 * slowest["shuffled_wait"],
    }


def measure_drawing() -> float:
    """Seconds to draw one pass over the record's data, as at the start of a run and at a resume inside the pass."""
    return median(seconds(lambda: next(shuffled_passes(RECORD_SHARDS, SEQ_LEN, seed=0))) for _ in range(3))


@functools.cache
def texts() -> list[str]:
    """Documents of the lengths that web pages have."""
    return [text for text in standard_library() if len(text) < 50_000]


def jsonl_lines(num_bytes: int) -> Iterator[bytes]:
    """Lines of JSONL with so many bytes of text: the standard library's documents, over and over."""
    for text in itertools.cycle(texts()):
        if num_bytes <= 0:
            return
        num_bytes -= len(text.encode())
        yield json.dumps({"text": text}).encode() + b"\n"


def measure_preparation(folder: Path) -> dict[str, float]:
    """Bytes of text a second of the whole preparation and of bare encoding, on all cores."""
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
# Not getrusage, which counts the process that started this one too.
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
"""


def peak_memory(num_bytes: int, folder: Path) -> float:
    """Peak resident megabytes of a process that trains a tokenizer on and prepares so much text from a pipe."""
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
        help="compare the memory for 100 MB and 1 GB, not for 20 and 200 MB (minutes)",
    )
    smaller = 100_000_000 if parser.parse_args().gigabyte else 20_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = [folder / shard_name("train", index) for index in range(NUM_SHARDS)]
        ids = np.random.default_rng(1337).integers(0, VOCAB_SIZE, SHARD_IDS, dtype=np.uint16)
        write_shard(shards[0], ids)
        for shard in shards[1:]:
            shard.symlink_to(shards[0])
        streams = {}
        for world_size in (1, 8):
            streams[f"{world_size}_ranks"] = stream = measure_stream(shards, world_size)
            print(
                f"stream, ranks: {world_size}   {stream['tokens_per_second'] / 1e6:8.0f} M tokens/s   "
                f"{stream['of_copy']:.0%} of a copy   {stream['times_needed']:.0f} times what GPUs need   "
                f"shuffled {stream['shuffled_of_in_order']:.0%} of that"
            )
            print(
                f"a step waits for it {stream['wait_microseconds']:6.0f} us, shuffled "
                f"{stream['shuffled_wait_microseconds']:.0f} us, at ten times the speed of the fastest GPU"
            )
        drawing = measure_drawing()
        print(f"drawing an order   {drawing:8.2f} s for {sum(RECORD_SHARDS) // SEQ_LEN:,} sequences")
        preparation = measure_preparation(folder)
        print(
            f"preparation        {preparation['bytes_per_second'] / 1e6:8.1f} MB/s of text   "
            f"{preparation['of_bare']:.0%} of bare encoding"
        )
        memory = {f"peak_mb_{size // 1_000_000}": peak_memory(size, folder) for size in (smaller, 10 * smaller)}
        growth = max(memory.values()) - min(memory.values())
        print(f"peak memory        {memory}   {growth:.0f} MB more for ten times the text")
    save(
        "data",
        {"stream": streams, "drawing_seconds": drawing, "preparation": preparation, "preparation_memory": memory},
    )


if __name__ == "__main__":
    main()
